"""Keys and values of tokens that were computed before, for sequences that begin alike (pure).

A full block is published under a digest of the model's identity and of all tokens up to the block's end: block-hash
chains. Keys and values depend on nothing else, and the digest is of 256 bits, so what is found is what would be
computed. A revision that comes back with other contents has another identity and finds nothing of before.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from services.worker.engine.blocks import BlockAllocator
from services.worker.engine.sequence import Sequence

_DIGEST_BYTES = 32


class PrefixCache:
    """Finds and publishes the blocks of sequences.

    Attributes:
        enabled: whether anything is published and found.
        hits: tokens that were found instead of computed.
    """

    def __init__(self, blocks: BlockAllocator, identity: Callable[[str], str], *, enabled: bool = True) -> None:
        """Prepares only.

        Args:
            blocks: that hold the keys and values.
            identity: of the contents of a revision ("": the base) that is in memory.
            enabled: False: nothing is published or found.
        """
        self.hits = 0
        self._blocks = blocks
        self._identity = identity
        self.enabled = enabled

    def is_stale(self, sequence: Sequence) -> bool:
        """Whether the contents of a sequence's revision are others than when its blocks were computed; notes these."""
        identity = self._identity(sequence.revision)
        if sequence.identity == identity:
            return False
        stale = bool(sequence.identity)
        sequence.identity = identity
        sequence.digests.clear()
        return stale

    def reuse(self, sequence: Sequence) -> None:
        """Gives a sequence without blocks those of its beginning; at least one token is left to compute."""
        if not self.enabled:
            return
        for index in range((len(sequence.tokens) - 1) // self._blocks.block_size):
            block = self._blocks.find(self._digest(sequence, index))
            if block is None:
                break
            sequence.blocks.append(block)
        sequence.published = len(sequence.blocks)
        sequence.computed = sequence.published * self._blocks.block_size
        self.hits += sequence.computed

    def publish(self, sequence: Sequence) -> None:
        """Makes the blocks findable that a step has filled."""
        if not self.enabled:
            return
        for index in range(sequence.published, sequence.computed // self._blocks.block_size):
            self._blocks.publish(sequence.blocks[index], self._digest(sequence, index))
            sequence.published = index + 1

    def _digest(self, sequence: Sequence, index: int) -> bytes:
        """Returns the digest of block `index`; those before it are known."""
        digests = sequence.digests
        if index == len(digests):
            size = self._blocks.block_size
            before = digests[-1] if digests else _root(sequence.identity)
            # as text: a token id may be any number before the model has checked it
            tokens = repr(sequence.tokens[index * size : (index + 1) * size]).encode()
            digests.append(blake2b(tokens, digest_size=_DIGEST_BYTES, key=before).digest())
        return digests[index]


def _root(identity: str) -> bytes:
    return blake2b(identity.encode(), digest_size=_DIGEST_BYTES).digest()
