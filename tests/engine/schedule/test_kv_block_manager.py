"""The block manager: every block is free or used, tables grow completely or not at all, freed blocks are reused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from motet.engine.schedule.kv_block_manager import BlockManager


class Pool(RuleBasedStateMachine):
    """Tables grow and are released in any order."""

    @initialize(total=st.integers(0, 12), size=st.integers(1, 5))
    def make(self, total: int, size: int) -> None:
        self.pool = BlockManager(total, size)
        self.tables: list[list[int]] = [[] for _ in range(5)]

    @rule(table=st.integers(0, 4), tokens=st.integers(0, 30))
    def grow(self, table: int, tokens: int) -> None:
        blocks = self.tables[table]
        before, free = list(blocks), self.pool.free
        missing = max(0, -(-tokens // self.pool.block_size) - len(blocks))
        grown = self.pool.grow(blocks, tokens)
        assert grown == (missing <= free)
        assert blocks[: len(before)] == before, "blocks of a table keep their positions"
        assert len(blocks) == len(before) + (missing if grown else 0)

    @rule(source=st.integers(0, 4), taker=st.integers(0, 4), count=st.integers(0, 6))
    def share(self, source: int, taker: int, count: int) -> None:
        if not self.tables[taker] and source != taker:
            free = self.pool.free
            self.tables[taker] = self.pool.share(self.tables[source][:count])
            assert self.pool.free == free, "sharing costs nothing"

    @rule(table=st.integers(0, 4))
    def release(self, table: int) -> None:
        self.pool.release(self.tables[table])
        assert self.tables[table] == []

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_integrity(self.tables)
            assert self.pool.free + len(set().union(*self.tables)) == self.pool.total

    def teardown(self) -> None:
        for table in self.tables if hasattr(self, "pool") else ():
            self.pool.release(table)
        if hasattr(self, "pool"):
            assert self.pool.free == self.pool.total


Pool.TestCase.settings = settings(max_examples=80, deadline=None)
TestPool = Pool.TestCase


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_needed_is_the_smallest_sufficient_number(tokens: int, size: int) -> None:
    needed = BlockManager(1, size).needed(tokens)
    assert needed * size >= tokens
    assert needed == 0 or (needed - 1) * size < tokens


def test_block_freed_last_is_used_next() -> None:
    pool = BlockManager(8, 1)
    table: list[int] = []
    pool.grow(table, 3)
    used = list(table)
    pool.release(table)
    pool.grow(table, 3)
    assert sorted(table) == sorted(used)


def test_releasing_twice_fails() -> None:
    pool = BlockManager(2, 1)
    table: list[int] = []
    pool.grow(table, 2)
    copy = list(table)
    pool.release(table)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(copy)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([[0, 0], [1]], "in a table twice"),
        ([[0]], "miscounted"),
        ([[0, 1], [1]], "miscounted"),
        ([[0, 1, 2]], "miscounted"),
    ],
)
def test_integrity_check_finds_what_is_wrong(tables: list[list[int]], message: str) -> None:
    pool = BlockManager(3, 1)
    pool.grow([], 2)  # blocks 0 and 1 are used
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity(tables)
