"""The key-value cache's blocks: who holds which. Knows no tensors; a block is a number."""

from __future__ import annotations

from collections import Counter


class BlockManager:
    """Hands out block numbers 0..total-1. The block freed last is used next, so that a light load touches few.

    A block may be in several tables at once (`share`); it is free again when the last one lets go of it.
    """

    def __init__(self, total: int, block_size: int) -> None:
        self.total = total
        self.block_size = block_size
        self._free = list(range(total - 1, -1, -1))
        self._holders = [0] * total

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
            self._holders[block] = 1
            blocks.append(block)
        return True

    def share(self, blocks: list[int]) -> list[int]:
        """Another table of the same blocks. They must be full: nobody may write what another reads."""
        for block in blocks:
            assert self._holders[block], f"block {block} is free"
            self._holders[block] += 1
        return list(blocks)

    def release(self, blocks: list[int]) -> None:
        """Let go of all of `blocks` and empty the list."""
        while blocks:
            block = blocks.pop()
            assert self._holders[block], f"block {block} released twice"
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)

    def check_integrity(self, tables: list[list[int]]) -> None:
        """Assert that every block is either free or in as many of `tables` as hold it."""
        held = Counter(block for table in tables for block in table)
        assert all(len(set(table)) == len(table) for table in tables), "a block is in a table twice"
        assert all(self._holders[block] == held[block] for block in range(self.total)), "holders are miscounted"
        assert len(set(self._free)) == len(self._free), "a block is free twice"
        assert not held.keys() & set(self._free), "a block is held and free"
        assert len(held) + len(self._free) == self.total, "a block is lost"
