"""The slot tables: what a device reads agrees with what is installed, after any changes."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from motet.engine.lora.pool import LoraPool, ModuleShape, PoolSize
from motet.engine.lora.slot_tables import SlotTables, pages_of, ranks_of, scales_of
from motet.engine.schedule.adapter_slots import pages_for
from motet.engine.schedule.plan import InstallAdapter, Placement

LAYERS, SLOTS, PAGES, MAX_RANK = 2, 3, 40, 64
LINEARS = {
    "qkv": (ModuleShape("q_proj", 8, 6), ModuleShape("k_proj", 8, 4), ModuleShape("v_proj", 8, 4)),
    "o": (ModuleShape("o_proj", 6, 8),),
}
PLACES = [(layer, shape.name) for layer in range(LAYERS) for shapes in LINEARS.values() for shape in shapes]


class Installations(RuleBasedStateMachine):
    """Random installations and clearings."""

    tables: type[SlotTables] = SlotTables

    def __init__(self) -> None:
        super().__init__()
        size = PoolSize(LAYERS, SLOTS, PAGES, MAX_RANK, 64)
        with patch("motet.engine.lora.pool.SlotTables", self.tables):
            self.pool = LoraPool(LINEARS, size, torch.device("cpu"), torch.float32)
        for fused in self.pool.layers[0].values():
            for tensor in (*fused.a, *fused.b):
                tensor.copy_(torch.arange(size.rows)[:, None].expand(tensor.shape))
        self.expected: dict[tuple[int, int, str], Placement] = {}

    @rule(
        slot=st.integers(0, SLOTS - 1),
        ranks=st.dictionaries(st.sampled_from(PLACES), st.integers(1, MAX_RANK)),
        random=st.randoms(use_true_random=False),
    )
    def install(self, slot: int, ranks: dict[tuple[int, str], int], random: Any) -> None:
        """Point a slot, full or empty, at pages."""
        self.clear(slot)
        placements = [
            Placement(layer, module, tuple(random.sample(range(PAGES), pages_for(rank))), rank, random.uniform(0.1, 9))
            for (layer, module), rank in ranks.items()
        ]
        self.pool.point(InstallAdapter(slot, "", (), tuple(placements)))
        self.expected |= {(slot, p.layer, p.module): p for p in placements}

    @rule(slot=st.integers(0, SLOTS - 1))
    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.pool.clear(slot)
        self.expected = {key: p for key, p in self.expected.items() if key[0] != slot}

    @invariant()
    def device_agrees(self) -> None:
        """Every entry of the device's tables is the placement's, and `pair` finds the same rows."""
        for layer, linears in enumerate(self.pool.layers):
            for fused in linears.values():
                views = ranks_of(fused.tables), scales_of(fused.tables), pages_of(fused.tables)
                for slot in range(SLOTS):
                    for part, name in enumerate(fused.parts):
                        placement = self.expected.get((slot, layer, name))
                        rank, scale, pages = (view[slot, part] for view in views)
                        assert rank == (placement.lora_rank if placement else 0)
                        if placement:
                            assert np.float32(scale) == np.float32(placement.scale)
                            assert tuple(pages[: len(placement.pages)].tolist()) == placement.pages
                        check_pair(fused.pair(slot, part), placement)


def check_pair(pair: tuple[torch.Tensor, torch.Tensor, float] | None, placement: Placement | None) -> None:
    """The pair has the placement's rows; each row of a pool is full of its own number."""
    assert (pair is None) == (placement is None)
    if pair is not None and placement is not None:
        rows = [page * 16 + i for page in placement.pages for i in range(16)][: placement.lora_rank]
        assert pair[0][:, 0].tolist() == pair[1][:, -1].tolist() == rows
        assert pair[2] == placement.scale


class SeparateTables(SlotTables):
    """Tables on a device with memory of its own, as CUDA has."""

    def __init__(self, slots: int, entries: int, max_pages: int, device: torch.device) -> None:
        super().__init__(slots, entries, max_pages, device)
        self.device = self.device.clone()


class InstallationsOnDevice(Installations):
    """The same, where the device sees only what is sent."""

    tables = SeparateTables


SETTINGS = settings(max_examples=30, stateful_step_count=12, deadline=None)
TestInstallations = Installations.TestCase
TestInstallationsOnDevice = InstallationsOnDevice.TestCase
TestInstallations.settings = TestInstallationsOnDevice.settings = SETTINGS
