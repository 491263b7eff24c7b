"""The segmented LoRA product against its definition, in pools whose pages lie anywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from motet.engine.lora.apply import apply_lora, apply_reference
from motet.engine.lora.lora_batch import EMPTY_SLOT, LONG_CHUNK, lora_batch, slot_tiles
from motet.engine.lora.pool import LoraPool, ModuleShape, PoolSize, page_bytes
from motet.engine.schedule.adapter_slots import PAGE_ROWS, pages_for
from motet.engine.schedule.plan import InstallAdapter, LoraChunk, Placement
from motet.engine.staging import StagingBuffer

RANKS = (1, 3, 4, 8, 12, 16, 17, 64)
LAYERS, PAGES = 2, 256
CPU = torch.device("cpu")

# Fused linear layers as a decoder has them: three parts, one part, two parts; sizes that nothing divides.
LINEARS = {
    "qkv": (ModuleShape("q_proj", 37, 24), ModuleShape("k_proj", 37, 9), ModuleShape("v_proj", 37, 9)),
    "o": (ModuleShape("o_proj", 24, 37),),
    "gate_up": (ModuleShape("gate_proj", 37, 53), ModuleShape("up_proj", 37, 53)),
}
PARTS = [part for parts in LINEARS.values() for part in parts]


@dataclass(frozen=True)
class Pair:
    """One module's LoRA in full."""

    a: Tensor
    b: Tensor
    scale: float


class PoolWithReference:
    """A pool with some adapters installed, and the same adapters as plain matrices."""

    def __init__(self, seed: int, slots: int, page_rows: int = PAGE_ROWS) -> None:
        self.page_rows = page_rows
        self.rng = np.random.default_rng(seed)
        self.pool = LoraPool(LINEARS, PoolSize(LAYERS, slots, PAGES, 64, 64, page_rows), CPU, torch.float32)
        for part in PARTS:
            self.pool.copy(self._garbage(part), self._garbage_tensors(part))
        self.pairs: dict[tuple[int, int, str], Pair] = {}
        # Page numbers are handed out in random order, so that an adapter's rank rows are scattered.
        self.free = {p.name: self.rng.permutation(PAGES).tolist() for p in PARTS}

    def random(self, *shape: int) -> Tensor:
        """Normal numbers that keep products near 1."""
        return torch.from_numpy(self.rng.normal(size=shape).astype(np.float32)) / shape[-1] ** 0.5

    def install(self, slot: int, ranks: dict[tuple[int, str], int]) -> InstallAdapter:
        """Put an adapter with these ranks (by layer and module) into a slot."""
        placements, tensors = [], {}
        for (layer, module), rank in ranks.items():
            shape = next(p for p in PARTS if p.name == module)
            pair = Pair(
                self.random(rank, shape.inputs), self.random(rank, shape.outputs), float(self.rng.uniform(0.1, 4))
            )
            pages = tuple(self.free[module].pop() for _ in range(pages_for(rank, self.page_rows)))
            placements.append(Placement(layer, module, pages, rank, pair.scale))
            tensors[f"{layer}.{module}.A"], tensors[f"{layer}.{module}.B"] = pair.a, pair.b
            self.pairs[slot, layer, module] = pair
        command = InstallAdapter(slot, f"adapter {slot}", (), tuple(placements))
        self.pool.copy(command, tensors)
        self.pool.point(command)
        return command

    def expected(self, x: Tensor, y: Tensor, place: tuple[int, str], chunks: Sequence[LoraChunk]) -> Tensor:
        """The definition: y += scale * (x A) B for each run of rows, in fp64."""
        result = y.double()
        for chunk in chunks:
            rows, column = slice(chunk.start, chunk.start + chunk.length), 0
            for part in LINEARS[place[1]]:
                if pair := self.pairs.get((chunk.slot, place[0], part.name)):
                    delta = x[rows].double() @ pair.a.double().T @ pair.b.double() * pair.scale
                    result[rows, column : column + part.outputs] += delta
                column += part.outputs
        return result.float()

    def apply(self, x: Tensor, y: Tensor, place: tuple[int, str], chunks: Sequence[LoraChunk]) -> Tensor:
        """The operation under test, on a copy."""
        layer, linear = place
        out = y.clone()
        batch = lora_batch(tuple(chunks), StagingBuffer(1 << 16, CPU))
        if batch is not None:
            apply_lora(x, out, self.pool.layers[layer][linear], batch)
        return out

    def _garbage(self, part: ModuleShape) -> InstallAdapter:
        place = Placement(0, part.name, tuple(range(PAGES)), PAGES * self.page_rows, 1.0)
        return InstallAdapter(0, "", (), (place,))

    def _garbage_tensors(self, part: ModuleShape) -> dict[str, Tensor]:
        """What other adapters left behind: rows that must never be read."""
        rows = PAGES * self.page_rows
        return {
            f"0.{part.name}.A": torch.full((rows, part.inputs), torch.nan),
            f"0.{part.name}.B": torch.full((rows, part.outputs), torch.nan),
        }


def full(rank: int) -> dict[tuple[int, str], int]:
    """The same rank everywhere."""
    return {(layer, part.name): rank for layer in range(LAYERS) for part in PARTS}


def layout(lengths: Sequence[tuple[int | None, int]]) -> tuple[list[LoraChunk], int]:
    """Chunks for (slot, length) runs one after the other, None for base rows; and the number of rows."""
    chunks, start = [], 0
    for slot, length in lengths:
        if slot is not None:
            chunks.append(LoraChunk(slot, start, length))
        start += length
    return chunks, start


@pytest.mark.parametrize("page_rows", [8, 16, 32])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("linear", LINEARS)
def test_each_rank_alone(rank: int, linear: str, page_rows: int) -> None:
    pool_setup = PoolWithReference(rank, slots=2, page_rows=page_rows)
    pool_setup.install(1, full(rank))
    chunks, rows = layout([(None, 2), (1, 1), (1, LONG_CHUNK - 1), (1, LONG_CHUNK), (None, 1), (1, 40)])
    x = pool_setup.random(rows, LINEARS[linear][0].inputs)
    y = pool_setup.random(rows, sum(p.outputs for p in LINEARS[linear]))
    for layer in range(LAYERS):
        out = pool_setup.apply(x, y, (layer, linear), chunks)
        torch.testing.assert_close(out, pool_setup.expected(x, y, (layer, linear), chunks), rtol=1e-5, atol=1e-5)


SLOTS = 4
RUNS = st.lists(
    st.tuples(st.none() | st.integers(0, SLOTS - 1), st.sampled_from((1, 1, 2, 15, 16, 33))), min_size=1, max_size=12
)
SOME_RANKS = st.dictionaries(
    st.tuples(st.integers(0, LAYERS - 1), st.sampled_from([p.name for p in PARTS])),
    st.sampled_from(RANKS),
    min_size=1,
)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    adapters=st.lists(SOME_RANKS, min_size=SLOTS, max_size=SLOTS),
    runs=RUNS,
    place=st.tuples(st.integers(0, LAYERS - 1), st.sampled_from(sorted(LINEARS))),
)
def test_any_mix(
    seed: int, adapters: list[dict[tuple[int, str], int]], runs: list[tuple[int | None, int]], place: tuple[int, str]
) -> None:
    """Mixed ranks with absent parts, base rows between, several chunks of one slot; rows alone as in company."""
    pool_setup = PoolWithReference(seed, SLOTS)
    for slot, ranks in enumerate(adapters):
        pool_setup.install(slot, ranks)
    chunks, rows = layout(runs)
    parts = LINEARS[place[1]]
    x, y = pool_setup.random(rows, parts[0].inputs), pool_setup.random(rows, sum(p.outputs for p in parts))
    out = pool_setup.apply(x, y, place, chunks)
    torch.testing.assert_close(out, pool_setup.expected(x, y, place, chunks), rtol=1e-5, atol=1e-5)

    reference = y.clone()
    apply_reference(x, reference, pool_setup.pool.layers[place[0]][place[1]], tuple(chunks))
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)

    covered = {row: c for c in chunks for row in range(c.start, c.start + c.length)}
    for row in range(rows):
        if row not in covered:
            assert torch.equal(out[row], y[row]), "a base row is touched"
        elif covered[row].length == 1:
            one = slice(row, row + 1)
            alone = pool_setup.apply(x[one].clone(), y[one], place, [LoraChunk(covered[row].slot, 0, 1)])
            assert torch.equal(alone[0], out[row]), "a decode row sees its neighbours"


def test_columns_of_absent_parts_keep_their_bits() -> None:
    pool_setup = PoolWithReference(0, slots=1)
    pool_setup.install(0, {(0, "k_proj"): 8})
    x, y = pool_setup.random(20, 37), pool_setup.random(20, 42)
    for lengths in ([(0, 20)], [(0, 1)] * 20):
        chunks, _ = layout(lengths)
        out = pool_setup.apply(x, y, (0, "qkv"), chunks)
        assert torch.equal(out[:, :24], y[:, :24])
        assert torch.equal(out[:, 33:], y[:, 33:])
        assert not torch.equal(out[:, 24:33], y[:, 24:33])
        assert torch.equal(pool_setup.apply(x, y, (1, "qkv"), chunks), y), "the other layer has nothing"


def test_cleared_and_refilled_slots() -> None:
    pool_setup = PoolWithReference(0, slots=2)
    pool_setup.install(0, full(17))
    neighbour = pool_setup.install(1, full(4))
    x, y = pool_setup.random(3, 37), pool_setup.random(3, 42)
    chunks = [LoraChunk(0, 0, 1), LoraChunk(1, 1, 1)]
    both = pool_setup.apply(x, y, (0, "qkv"), chunks)
    pool_setup.pool.clear(0)
    cleared = pool_setup.apply(x, y, (0, "qkv"), chunks)
    assert torch.equal(cleared[0], y[0])
    assert torch.equal(cleared[1], both[1])
    for key in [key for key in pool_setup.pairs if key[0] == 0]:
        del pool_setup.pairs[key]
    pool_setup.install(0, {(0, "q_proj"): 3})
    torch.testing.assert_close(
        pool_setup.apply(x, y, (0, "qkv"), chunks), pool_setup.expected(x, y, (0, "qkv"), chunks)
    )
    pool_setup.pool.point(neighbour)
    torch.testing.assert_close(
        pool_setup.apply(x, y, (0, "qkv"), chunks), pool_setup.expected(x, y, (0, "qkv"), chunks)
    )


def test_batch_separates_long_chunks_from_single_rows() -> None:
    chunks = (LoraChunk(3, 0, 1), LoraChunk(1, 2, LONG_CHUNK), LoraChunk(0, 40, 2))
    batch = lora_batch(chunks, StagingBuffer(1 << 16, CPU))
    assert batch is not None
    assert batch.long_chunks == (chunks[1],)
    assert batch.rows.tolist() == [0, 40, 41]
    assert batch.slots.tolist() == [3, 0, 0]
    tiles = zip(*(tensor.tolist() for tensor in slot_tiles(chunks, 16, StagingBuffer(1 << 16, CPU))), strict=True)
    tiled = [(row, slot) for slot, rows in tiles for row in rows if row >= 0]
    assert sorted(tiled) == [(0, 3), *((row, 1) for row in range(2, 18)), (40, 0), (41, 0)]
    assert lora_batch((), StagingBuffer(1 << 16, CPU)) is None


def test_tiles_without_rows_make_their_number_constant() -> None:
    staging, addresses = StagingBuffer(1 << 16, CPU), []
    for chunks in ((), (LoraChunk(3, 0, 1), LoraChunk(1, 2, 20), LoraChunk(3, 40, 2))):
        staging.begin()
        slots, rows = slot_tiles(chunks, 16, staging, num_tiles=5)
        addresses.append((slots.data_ptr(), rows.data_ptr()))
    assert addresses[0] == addresses[1]
    assert slots.tolist() == [3, 1, 1, EMPTY_SLOT, EMPTY_SLOT]
    assert rows[0].tolist() == [0, 40, 41, *[-1] * 13]
    assert rows[2].tolist() == [18, 19, 20, 21, *[-1] * 12]
    assert rows[3:].eq(-1).all()
    with pytest.raises(ValueError, match="3 tiles are needed, and there are 2"):
        slot_tiles(chunks, 16, staging, num_tiles=2)


def test_tensors_of_another_shape_are_not_installed() -> None:
    pool_setup = PoolWithReference(0, slots=1)
    command = InstallAdapter(0, "", (), (Placement(0, "q_proj", (0,), 8, 1.0),))
    with pytest.raises(ValueError, match=re.escape("0.q_proj.A has shape [7, 37]; expected [8, 37]")):
        pool_setup.pool.copy(command, {"0.q_proj.A": torch.zeros(7, 37), "0.q_proj.B": torch.zeros(8, 24)})


def test_page_bytes_are_what_the_pools_take() -> None:
    pages = 5
    pool = LoraPool(LINEARS, PoolSize(LAYERS, 1, pages, 16, 64), CPU, torch.float32)
    seen = {t.data_ptr(): t.nbytes for fused in pool.layers[0].values() for t in (*fused.a, *fused.b)}
    assert sum(seen.values()) == pages * page_bytes(LINEARS, 4)
