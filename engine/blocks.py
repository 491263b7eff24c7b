"""The key-value cache's blocks: who holds which. Knows no tensors; a block is a number."""

from __future__ import annotations


class BlockPool:
    """Hands out block numbers 0..total-1. The block freed last is used next, so that a light load touches few."""

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(range(total - 1, -1, -1))
        self._held = [False] * total

    @property
    def free(self) -> int:
        """How many blocks nobody holds."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill."""
        return -(-tokens // self.block_size)

    def grow(self, blocks: list[int], tokens: int) -> bool:
        """Extend `blocks` until it holds `tokens` tokens; False, and nothing changed, if too few are free."""
        missing = self.needed(tokens) - len(blocks)
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block = self._free.pop()
            self._held[block] = True
            blocks.append(block)
        return True

    def release(self, blocks: list[int]) -> None:
        """Take all of `blocks` back and empty the list."""
        while blocks:
            block = blocks.pop()
            assert self._held[block], f"block {block} released twice"
            self._held[block] = False
            self._free.append(block)

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Assert that every block is either free or in exactly one of `tables`."""
        held = [block for table in tables for block in table]
        assert len(set(held)) == len(held), "a block is in two tables"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert not set(held) & set(self._free), "a block is held and free"
        assert len(held) + len(self._free) == self.total, "a block is lost"
        assert all(self._held[block] for block in held)
