"""Allocator of KV cache blocks (pure)."""

from __future__ import annotations

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
        self._taken = bytearray(count)

    @property
    def free(self) -> int:
        """Number of blocks that can be allocated now."""
        return len(self._free)

    @property
    def capacity(self) -> int:
        """Tokens that fit when every block is free."""
        return (self.count - 1) * self.block_size

    def blocks_for(self, tokens: int) -> int:
        """Returns the number of blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def allocate(self, number: int) -> list[int]:
        """Takes `number` blocks; raises InternalError when fewer are free (callers look at `free` first)."""
        if number > len(self._free):
            raise InternalError(f"asked for {number} KV blocks; {len(self._free)} of {self.count} are free")
        blocks = [self._free.pop() for _ in range(number)]
        for block in blocks:
            self._taken[block] = 1
        return blocks

    def release(self, blocks: list[int]) -> None:
        """Gives blocks back; raises InternalError for a block that is not taken."""
        for block in blocks:
            if not self._taken[block]:
                raise InternalError(f"KV block {block} was released twice")
            self._taken[block] = 0
        self._free.extend(reversed(blocks))
