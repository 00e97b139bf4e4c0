"""Allocator of KV cache blocks, with the full ones findable by what they hold (pure).

A block has as many owners as sequences use it. One that nobody owns is free; if it was published under a digest it
keeps its contents until its memory is needed, and those unused for longest are taken first.
"""

from __future__ import annotations

from collections import OrderedDict

from deltaserve.errors import InternalError

NULL_BLOCK = 0  # never handed out and always zero in the cache: what unused entries of block tables point at


class BlockAllocator:
    """Hands out blocks 1 … count − 1; block 0 is NULL_BLOCK.

    Attributes:
        count: blocks in all, the null block included.
        block_size: tokens in a block.
    """

    def __init__(self, count: int, block_size: int) -> None:
        self.count = count
        self.block_size = block_size
        self._free = list(range(count - 1, 0, -1))
        self._owners = [0] * count
        self._digests: dict[int, bytes] = {}  # of published blocks
        self._published: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published and without owner, last used last

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def capacity(self) -> int:
        """Tokens that fit when every block is free."""
        return (self.count - 1) * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Returns the number of blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, number: int) -> list[int]:
        """Takes `number` blocks; raises InternalError when fewer are free (callers look at `free` first)."""
        if number > self.free:
            raise InternalError(f"asked for {number} KV blocks; {self.free} of {self.count} are free")
        blocks = [self._free.pop() if self._free else self._forget_oldest() for _ in range(number)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Takes an owner from each block, the last first; raises InternalError for a block that has none."""
        for block in reversed(blocks):
            if not self._owners[block]:
                raise InternalError(f"KV block {block} was released twice")
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            if block in self._digests:
                self._idle[block] = None
            else:
                self._free.append(block)

    def publish(self, block: int, digest: bytes) -> None:
        """Makes a full block findable; when another holds the same, or it is published already, nothing changes."""
        if digest not in self._published and block not in self._digests:
            self._digests[block] = digest
            self._published[digest] = block

    def find(self, digest: bytes) -> int | None:
        """Returns the block that was published under a digest, with one more owner; None when there is none."""
        block = self._published.get(digest)
        if block is not None:
            self._owners[block] += 1
            self._idle.pop(block, None)
        return block

    def _forget_oldest(self) -> int:
        block, _ = self._idle.popitem(last=False)
        del self._published[self._digests.pop(block)]
        return block
