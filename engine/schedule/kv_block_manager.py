"""The blocks of the KV cache: how many tokens they have, which are free, and which sequences use them."""

from __future__ import annotations

from collections import Counter

CPU_BLOCK_SIZE, CUDA_BLOCK_SIZE = 32, 256
"""Tokens in a block; flash-attn's paged cache needs a multiple of 256."""


class BlockManager:
    """Allocates the block numbers 0..total-1. The block freed last is used first, so that a light load uses few.

    A block can be in several block tables (`share`); it is free when the last one has released it.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(range(total - 1, -1, -1))
        self._use_counts = [0] * total

    @property
    def free(self) -> int:
        """How many blocks are free."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """How many blocks `tokens` tokens need."""
        return -(-tokens // self.block_size)

    def grow(self, blocks: list[int], tokens: int) -> bool:
        """Extend the table `blocks` to `tokens` tokens; False, and no change, if too few blocks are free."""
        missing = self.needed(tokens) - len(blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.pop()
            self._use_counts[block] = 1
            blocks.append(block)
        return True

    def share(self, blocks: list[int]) -> list[int]:
        """A second table of the same blocks. They must be full, since no sequence may write what another one reads."""
        for block in blocks:
            assert self._use_counts[block], f"block {block} is free"
            self._use_counts[block] += 1
        return list(blocks)

    def release(self, blocks: list[int]) -> None:
        """Free all of `blocks` that no other table has, and empty the list."""
        while blocks:
            block = blocks.pop()
            assert self._use_counts[block], f"block {block} released twice"
            self._use_counts[block] -= 1
            if not self._use_counts[block]:
                self._free.append(block)

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Assert that every block is free, or in as many of `tables` as were counted."""
        used = Counter(block for table in tables for block in table)
        assert all(len(set(table)) == len(table) for table in tables), "a block is in a table twice"
        assert all(self._use_counts[block] == used[block] for block in range(self.total)), "uses are miscounted"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert not used.keys() & set(self._free), "a block is used and free"
        assert len(used) + len(self._free) == self.total, "a block is lost"
