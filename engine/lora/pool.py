"""The device memory of adapters: for each module one pool of A rows and one of B rows, in pages of rank rows.

A slot is a row in static tables: for each layer and module its pages, its LoRA rank (0: absent) and its scale. Pools
and tables never move, so one captured graph can serve any mix of adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from motet.engine.lora.adapter_upload import AdapterUpload, PoolWrite, upload_capacity
from motet.engine.lora.slot_tables import SlotTables, pages_of, ranks_of, scales_of
from motet.engine.schedule.adapter_slots import PAGE_ROWS, pages_for
from motet.engine.schedule.plan import InstallAdapter, Placement

if TYPE_CHECKING:
    from motet.engine.kernels.lora_triton import TiledLora


@dataclass(frozen=True)
class ModuleShape:
    """One linear module on this rank: its name, and the input and output sizes of this rank's shard."""

    name: str
    inputs: int
    outputs: int


@dataclass
class FusedLora:
    """The adapters' side of one fused linear layer: the pools of its parts, and their tables over slots.

    a [parts, pool rows, inputs] and b[i] [pool rows, outputs] are the pools of part i, whose output starts at column
    offsets[i]; the tensors of `b` follow each other in memory. A page has `page_rows` rank rows. `tables`
    [slots, parts, words] are the layer's entries of SlotTables. `arrays` are NumPy views of the pools (A, B) and of the
    tables (pages, ranks, scales, offsets), for the CPU kernels; `tiled` has the kernels for CUDA.
    """

    parts: tuple[str, ...]
    a: Tensor
    b: tuple[Tensor, ...]
    tables: Tensor
    page_rows: int
    offsets: tuple[int, ...] = field(init=False)
    arrays: tuple[object, object] = field(init=False)
    tiled: TiledLora | None = None
    _installed: dict[tuple[int, int], tuple[slice | Tensor, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        widths = [b.shape[1] for b in self.b]
        self.offsets = tuple(sum(widths[:i]) for i in range(len(widths)))
        if self.tables.device.type == "cpu":
            pools = (tuple(t.numpy() for t in self.a), tuple(t.numpy() for t in self.b))
            offsets = torch.tensor(self.offsets, dtype=torch.int32)
            tables = (pages_of(self.tables), ranks_of(self.tables), scales_of(self.tables), offsets)
            self.arrays = (pools, tuple(t.numpy() for t in tables))

    @property
    def outputs(self) -> int:
        """Columns of the fused layer's output."""
        return sum(b.shape[1] for b in self.b)

    def pair(self, slot: int, part: int) -> tuple[Tensor, Tensor, float] | None:
        """(A [rank, inputs], B [rank, outputs], scale) of a slot's part; None where the slot's adapter has none."""
        if (slot, part) not in self._installed:
            return None
        rows, scale = self._installed[slot, part]
        return self.a[part][rows], self.b[part][rows], scale

    def point(self, slot: int, part: int, placement: Placement) -> None:
        """Let `pair` find the placement's rows."""
        self._installed[slot, part] = _index(_pool_rows(placement, self.page_rows)), placement.scale

    def clear(self, slot: int) -> None:
        """Forget the slot's rows."""
        for part in range(len(self.parts)):
            self._installed.pop((slot, part), None)


@dataclass(frozen=True)
class PoolSize:
    """Every module's pool has `pages` pages of `page_rows` rank rows; no LoRA pair may exceed `max_rank`.

    A step has at most `max_tokens` rows, which only CUDA's scratch memory depends on.
    """

    layers: int
    slots: int
    pages: int
    max_rank: int
    max_tokens: int
    page_rows: int = PAGE_ROWS

    @property
    def rows(self) -> int:
        """Rank rows of a module's pool."""
        return self.pages * self.page_rows

    @property
    def max_pages(self) -> int:
        """Pages of the largest LoRA pair."""
        return pages_for(self.max_rank, self.page_rows)


class LoraPool:
    """All pools and tables of one rank. layers[i][name] is layer i's fused linear layer of that name."""

    def __init__(
        self,
        linears: Mapping[str, tuple[ModuleShape, ...]],
        size: PoolSize,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`linears` has the modules of each fused linear layer, by the layer's name."""
        self.size, self.linears = size, linears
        self._device = device
        self._a: dict[str, Tensor] = {}
        self._b: dict[str, Tensor] = {}
        # By decoder layer and module: the fused layer, the part of it, and the entry in the tables.
        self._parts: dict[tuple[int, str], tuple[FusedLora, int, int]] = {}
        self._tables = SlotTables(size.slots, size.layers * sum(map(len, linears.values())), size.max_pages, device)
        pools = {name: self._allocate(shapes, dtype) for name, shapes in linears.items()}
        self.layers = [
            {name: self._fused_lora(layer, shapes, *pools[name]) for name, shapes in linears.items()}
            for layer in range(size.layers)
        ]
        self._upload: AdapterUpload | None = None
        self._cleared: dict[int, torch.cuda.Event] = {}
        if device.type == "cuda":
            self._prepare_cuda(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all pools, which no adapter's tensors exceed."""
        return sum(pool.nbytes for pool in (*self._a.values(), *self._b.values()))

    def _allocate(self, shapes: tuple[ModuleShape, ...], dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The A and B pools of a fused linear layer's parts, one allocation each."""
        rows, widths = self.size.rows, [s.outputs for s in shapes]
        a = torch.empty(len(shapes), rows, shapes[0].inputs, dtype=dtype, device=self._device)
        b = torch.empty(rows * sum(widths), dtype=dtype, device=self._device)
        parts = tuple(b_part.view(rows, -1) for b_part in b.split([rows * width for width in widths]))
        for shape, a_part, b_part in zip(shapes, a, parts, strict=True):
            self._a[shape.name], self._b[shape.name] = a_part, b_part
        return a, parts

    def _fused_lora(self, layer: int, shapes: tuple[ModuleShape, ...], a: Tensor, b: tuple[Tensor, ...]) -> FusedLora:
        first = len(self._parts)
        tables = self._tables.device[:, first : first + len(shapes)]
        fused = FusedLora(tuple(s.name for s in shapes), a, b, tables, self.size.page_rows)
        for i, shape in enumerate(shapes):
            self._parts[layer, shape.name] = fused, i, first + i
        return fused

    def _prepare_cuda(self, dtype: torch.dtype) -> None:
        """Make the kernels with their scratch memory, and the staging memory of installations."""
        attach_kernels(self)
        widths = [pool.shape[1] for pool in (*self._a.values(), *self._b.values())]
        row_bytes = [width * dtype.itemsize + 8 for width in widths]
        largest, adapter = self.size.max_rank * max(row_bytes), self.size.max_rank * sum(row_bytes) * self.size.layers
        self._upload = AdapterUpload(upload_capacity(largest, adapter, len(widths)), self._device)

    def copy(self, install: InstallAdapter, tensors: dict[str, Tensor]) -> None:
        """Write an adapter's rows into its pages. Safe during a step, since no slot refers to these pages yet.

        `tensors` are `{layer}.{module}.A` [rank, inputs] and `….B` [rank, outputs], this rank's shard. On CUDA the
        calling thread waits for the device: for the steps launched before the slot was cleared, and for the copy.
        Raises ValueError if a tensor has another shape.
        """
        writes = self._writes(install, tensors)
        if self._upload is not None:
            self._upload.write(writes, self._cleared[install.slot])
            return
        for write in writes:
            write.pool[_index(write.rows)] = write.tensor.to(write.pool)

    def _writes(self, install: InstallAdapter, tensors: dict[str, Tensor]) -> Iterator[PoolWrite]:
        for p in install.placements:
            rows = _pool_rows(p, self.size.page_rows)
            for pool, side in ((self._a[p.module], "A"), (self._b[p.module], "B")):
                name = f"{p.layer}.{p.module}.{side}"
                expected = (p.lora_rank, pool.shape[1])
                if tensors[name].shape != expected:
                    raise ValueError(f"{name} has shape {list(tensors[name].shape)}; expected {list(expected)}")
                yield PoolWrite(pool, rows, tensors[name])

    def point(self, install: InstallAdapter) -> None:
        """Make the slot refer to the copied pages. Call it between steps."""
        self._empty(install.slot)
        for p in install.placements:
            fused, part, entry = self._parts[p.layer, p.module]
            fused.point(install.slot, part, p)
            self._tables.set(install.slot, entry, p)
        self._tables.send(install.slot)

    def clear(self, slot: int) -> None:
        """Empty the slot. Call it between steps."""
        self._empty(slot)
        self._tables.send(slot)
        if self._device.type == "cuda":
            self._cleared[slot] = torch.cuda.Event()
            self._cleared[slot].record()

    def _empty(self, slot: int) -> None:
        self._tables.clear(slot)
        for linears in self.layers:
            for fused in linears.values():
                fused.clear(slot)


def attach_kernels(pool: LoraPool) -> None:
    """Give every fused layer its Triton kernels; they share one scratch memory, as they run one after the other."""
    from motet.engine.kernels.lora_triton import TiledLora, scratch_numbers

    size = pool.size
    layers = [fused for linears in pool.layers for fused in linears.values()]
    rank_rows = size.max_pages * size.page_rows
    numbers = max(
        scratch_numbers(fused.a.shape[2], [b.shape[1] for b in fused.b], rank_rows, size.max_tokens)
        for fused in pool.layers[0].values()
    )
    hidden = torch.empty(numbers, dtype=torch.float32, device=layers[0].a.device)
    for fused in layers:
        fused.tiled = TiledLora((fused.a, fused.b), fused.tables, hidden, size.max_tokens, size.page_rows)


def _pool_rows(placement: Placement, page_rows: int) -> list[int]:
    """A placement's pool rows."""
    rows = [page * page_rows + i for page in placement.pages for i in range(page_rows)]
    return rows[: placement.lora_rank]


def _index(rows: list[int]) -> slice | Tensor:
    """An index of `rows`: a slice, which copies nothing, if they are consecutive."""
    first, stop = rows[0], rows[0] + len(rows)
    return slice(first, stop) if rows == list(range(first, stop)) else torch.tensor(rows)


def page_bytes(linears: Mapping[str, tuple[ModuleShape, ...]], item_size: int) -> int:
    """Bytes on this rank that one page in every module's pool takes."""
    return sum((s.inputs + s.outputs) * PAGE_ROWS * item_size for shapes in linears.values() for s in shapes)
