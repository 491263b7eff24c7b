"""The device memory of adapters: for each module one pool of A rows and one of B rows, in pages of rank rows.

A slot is a row in static tables: for each layer and module its pages, its LoRA rank (0: absent) and its scale. Pools
and tables never move, so one captured graph can serve any mix of adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from motet.engine.schedule.adapter_slots import PAGE_ROWS, pages_for
from motet.engine.schedule.plan import InstallAdapter, Placement


@dataclass(frozen=True)
class ModuleShape:
    """One linear module on this rank: its name, and the input and output sizes of this rank's shard."""

    name: str
    inputs: int
    outputs: int


@dataclass
class FusedLora:
    """The adapters' side of one fused linear layer: the pools of its parts, and their tables over slots.

    a[i] [pool rows, inputs] and b[i] [pool rows, outputs] belong to part i, whose output starts at column
    offsets[i]. pages [slots, parts, n] and ranks [slots, parts] are int32; scales [slots, parts] fp32. A page has
    `page_rows` rank rows. `arrays` are NumPy views of the pools (A, B) and of the tables, for the CPU kernels.
    """

    parts: tuple[str, ...]
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    offsets: Tensor
    pages: Tensor
    ranks: Tensor
    scales: Tensor
    page_rows: int
    arrays: tuple[object, object] = field(init=False)
    _installed: dict[tuple[int, int], tuple[slice | Tensor, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ranks.device.type == "cpu":
            pools = (tuple(t.numpy() for t in self.a), tuple(t.numpy() for t in self.b))
            tables = (self.pages.numpy(), self.ranks.numpy(), self.scales.numpy(), self.offsets.numpy())
            self.arrays = (pools, tables)

    def pair(self, slot: int, part: int) -> tuple[Tensor, Tensor, float] | None:
        """(A [rank, inputs], B [rank, outputs], scale) of a slot's part; None where the slot's adapter has none."""
        if (slot, part) not in self._installed:
            return None
        rows, scale = self._installed[slot, part]
        return self.a[part][rows], self.b[part][rows], scale

    def point(self, slot: int, part: int, placement: Placement) -> None:
        """Make the slot's part refer to the placement's pages."""
        self.pages[slot, part, : len(placement.pages)] = torch.tensor(placement.pages, dtype=torch.int32)
        self.ranks[slot, part] = placement.lora_rank
        self.scales[slot, part] = placement.scale
        rows = _pool_rows(placement, self.page_rows, self.pages.device)
        self._installed[slot, part] = rows, placement.scale

    def clear(self, slot: int) -> None:
        """Empty the slot."""
        self.ranks[slot] = 0
        for part in range(len(self.parts)):
            self._installed.pop((slot, part), None)


@dataclass(frozen=True)
class PoolSize:
    """Every module's pool has `pages` pages of `page_rows` rank rows; no LoRA pair may exceed `max_rank`."""

    layers: int
    slots: int
    pages: int
    max_rank: int
    page_rows: int = PAGE_ROWS


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
        self._device, self._size = device, size
        self._a: dict[str, Tensor] = {}
        self._b: dict[str, Tensor] = {}
        self._parts: dict[tuple[int, str], tuple[FusedLora, int]] = {}
        for shape in (s for shapes in linears.values() for s in shapes):
            rows = size.pages * size.page_rows
            self._a[shape.name] = torch.empty(rows, shape.inputs, dtype=dtype, device=device)
            self._b[shape.name] = torch.empty(rows, shape.outputs, dtype=dtype, device=device)
        self.layers = [
            {name: self._fused_lora(layer, shapes) for name, shapes in linears.items()} for layer in range(size.layers)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes of all pools, which no adapter's tensors exceed."""
        return sum(pool.nbytes for pool in (*self._a.values(), *self._b.values()))

    def _fused_lora(self, layer: int, shapes: tuple[ModuleShape, ...]) -> FusedLora:
        slots, max_pages = self._size.slots, pages_for(self._size.max_rank, self._size.page_rows)
        offsets = [sum(s.outputs for s in shapes[:i]) for i in range(len(shapes))]
        fused = FusedLora(
            parts=tuple(s.name for s in shapes),
            a=tuple(self._a[s.name] for s in shapes),
            b=tuple(self._b[s.name] for s in shapes),
            offsets=torch.tensor(offsets, dtype=torch.int32, device=self._device),
            pages=torch.zeros(slots, len(shapes), max_pages, dtype=torch.int32, device=self._device),
            ranks=torch.zeros(slots, len(shapes), dtype=torch.int32, device=self._device),
            scales=torch.zeros(slots, len(shapes), dtype=torch.float32, device=self._device),
            page_rows=self._size.page_rows,
        )
        for i, shape in enumerate(shapes):
            self._parts[layer, shape.name] = fused, i
        return fused

    def copy(self, install: InstallAdapter, tensors: dict[str, Tensor]) -> None:
        """Write an adapter's rows into its pages. Safe during a step, since no slot refers to these pages yet.

        `tensors` are `{layer}.{module}.A` [rank, inputs] and `….B` [rank, outputs], this rank's shard.
        """
        for p in install.placements:
            rows = _pool_rows(p, self._size.page_rows, self._device)
            for pool, side in ((self._a, "A"), (self._b, "B")):
                pool[p.module][rows] = tensors[f"{p.layer}.{p.module}.{side}"].to(pool[p.module])

    def point(self, install: InstallAdapter) -> None:
        """Make the slot refer to the copied pages. Call it between steps."""
        self.clear(install.slot)
        for p in install.placements:
            fused, part = self._parts[p.layer, p.module]
            fused.point(install.slot, part, p)

    def clear(self, slot: int) -> None:
        """Empty the slot. Call it between steps."""
        for linears in self.layers:
            for fused in linears.values():
                fused.clear(slot)


def _pool_rows(placement: Placement, page_rows: int, device: torch.device) -> slice | Tensor:
    """A placement's pool rows: a slice (which copies nothing) if its pages are consecutive, else indices."""
    first, pages = placement.pages[0], placement.pages
    if pages == tuple(range(first, first + len(pages))):
        return slice(first * page_rows, first * page_rows + placement.lora_rank)
    rows = [page * page_rows + i for page in pages for i in range(page_rows)]
    return torch.tensor(rows[: placement.lora_rank], device=device)


def page_bytes(linears: Mapping[str, tuple[ModuleShape, ...]], item_size: int) -> int:
    """Bytes on this rank that one page in every module's pool takes."""
    return sum((s.inputs + s.outputs) * PAGE_ROWS * item_size for shapes in linears.values() for s in shapes)
