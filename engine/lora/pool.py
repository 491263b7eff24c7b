"""The device memory of adapters: for each module one pool of A rows and one of B rows, in pages of 16 rank rows.

A slot is a row in static tables: for each layer and module its pages, its rank (0: absent) and its scale. Pools
and tables never move, so one captured graph can serve any mix of adapters.
"""

from __future__ import annotations

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
class Projection:
    """LoRA's side of one fused projection in one layer: pools of its parts, and their tables over slots.

    a[i] [pool rows, inputs] and b[i] [pool rows, outputs] belong to part i, whose output starts at column
    offsets[i]. pages [slots, parts, n], ranks [slots, parts] are int32; scales [slots, parts] fp32.
    """

    parts: tuple[str, ...]
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    offsets: Tensor
    pages: Tensor
    ranks: Tensor
    scales: Tensor
    arrays: tuple[object, object] = field(init=False)
    _located: dict[tuple[int, int], tuple[slice | Tensor, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ranks.device.type == "cpu":  # the CPU kernels take NumPy views, made once
            pools = (tuple(t.numpy() for t in self.a), tuple(t.numpy() for t in self.b))
            tables = (self.pages.numpy(), self.ranks.numpy(), self.scales.numpy(), self.offsets.numpy())
            self.arrays = (pools, tables)

    def pair(self, slot: int, part: int) -> tuple[Tensor, Tensor, float] | None:
        """(A [rank, inputs], B [rank, outputs], scale) of a slot's part; None where the slot does not touch it."""
        if (slot, part) not in self._located:
            return None
        rows, scale = self._located[slot, part]
        return self.a[part][rows], self.b[part][rows], scale

    def point(self, slot: int, part: int, placement: Placement) -> None:
        """Let the slot's part refer to the placement's pages."""
        self.pages[slot, part, : len(placement.pages)] = torch.tensor(placement.pages, dtype=torch.int32)
        self.ranks[slot, part] = placement.lora_rank
        self.scales[slot, part] = placement.scale
        self._located[slot, part] = _rows(placement, self.pages.device), placement.scale

    def clear(self, slot: int) -> None:
        """Let the slot touch nothing."""
        self.ranks[slot] = 0
        for part in range(len(self.parts)):
            self._located.pop((slot, part), None)


@dataclass(frozen=True)
class PoolSize:
    """`pages` is how many pages every module's pool has; no LoRA pair may exceed `max_rank`."""

    layers: int
    slots: int
    pages: int
    max_rank: int


class LoraPool:
    """All pools and tables of one rank."""

    def __init__(
        self,
        fused: tuple[tuple[ModuleShape, ...], ...],
        size: PoolSize,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """`fused` lists the fused projections of a layer, in the order in which the layer has them."""
        self._device = device
        self._a: dict[str, Tensor] = {}
        self._b: dict[str, Tensor] = {}
        self._projections: dict[tuple[int, str], tuple[Projection, int]] = {}
        self.layers: list[list[Projection]] = []
        for shape in (s for shapes in fused for s in shapes):
            rows = size.pages * PAGE_ROWS
            self._a[shape.name] = torch.empty(rows, shape.inputs, dtype=dtype, device=device)
            self._b[shape.name] = torch.empty(rows, shape.outputs, dtype=dtype, device=device)
        for layer in range(size.layers):
            self.layers.append([self._projection(layer, shapes, size) for shapes in fused])

    def _projection(self, layer: int, shapes: tuple[ModuleShape, ...], size: PoolSize) -> Projection:
        slots = size.slots
        offsets = [sum(s.outputs for s in shapes[:i]) for i in range(len(shapes))]
        projection = Projection(
            parts=tuple(s.name for s in shapes),
            a=tuple(self._a[s.name] for s in shapes),
            b=tuple(self._b[s.name] for s in shapes),
            offsets=torch.tensor(offsets, dtype=torch.int32, device=self._device),
            pages=torch.zeros(slots, len(shapes), pages_for(size.max_rank), dtype=torch.int32, device=self._device),
            ranks=torch.zeros(slots, len(shapes), dtype=torch.int32, device=self._device),
            scales=torch.zeros(slots, len(shapes), dtype=torch.float32, device=self._device),
        )
        for i, shape in enumerate(shapes):
            self._projections[layer, shape.name] = projection, i
        return projection

    def copy(self, install: InstallAdapter, tensors: dict[str, Tensor]) -> None:
        """Write an adapter's rows into its pages. Safe beside a running step: nobody reads these pages yet.

        `tensors` are `{layer}.{module}.A` [rank, inputs] and `….B` [rank, outputs], this rank's shard.
        """
        for p in install.placements:
            rows = _rows(p, self._device)
            for pool, side in ((self._a, "A"), (self._b, "B")):
                pool[p.module][rows] = tensors[f"{p.layer}.{p.module}.{side}"].to(pool[p.module])

    def point(self, install: InstallAdapter) -> None:
        """Make the slot refer to the copied pages; between steps."""
        self.clear(install.slot)
        for p in install.placements:
            projection, part = self._projections[p.layer, p.module]
            projection.point(install.slot, part, p)

    def clear(self, slot: int) -> None:
        """Empty the slot; between steps."""
        for projections in self.layers:
            for projection in projections:
                projection.clear(slot)


def _rows(placement: Placement, device: torch.device) -> slice | Tensor:
    """A placement's pool rows: a slice where its pages follow one another (no copy then), else indices."""
    first, pages = placement.pages[0], placement.pages
    if pages == tuple(range(first, first + len(pages))):
        return slice(first * PAGE_ROWS, first * PAGE_ROWS + placement.lora_rank)
    rows = [page * PAGE_ROWS + i for page in pages for i in range(PAGE_ROWS)]
    return torch.tensor(rows[: placement.lora_rank], device=device)


def page_bytes(fused: tuple[tuple[ModuleShape, ...], ...], item_size: int) -> int:
    """Bytes on this rank that one page in every module's pool takes."""
    return sum((s.inputs + s.outputs) * PAGE_ROWS * item_size for shapes in fused for s in shapes)
