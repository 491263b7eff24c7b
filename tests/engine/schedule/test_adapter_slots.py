"""Adapter slots: pages and slots are never shared or lost; unused adapters are evicted, least recently used first."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from motet.core.errors import AdapterRefused
from motet.core.messages import LoraEntry, PreparedAdapter
from motet.engine.schedule.adapter_eviction import least_used, place
from motet.engine.schedule.adapter_slots import PAGE_ROWS, AdapterSlots, pages_for
from motet.engine.schedule.plan import ClearSlot, InstallAdapter

MODULES = ("q_proj", "down_proj")
ENTRIES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(MODULES), st.sampled_from((1, 8, 16, 17, 40))),
    min_size=1,
    max_size=4,
    unique_by=lambda e: e[:2],
)


def adapter(name: str, *entries: tuple[int, str, int]) -> PreparedAdapter:
    """A prepared adapter with these (layer, module, rank) entries; the tests open no files."""
    parts = tuple(LoraEntry(layer, module, rank, 2.0) for layer, module, rank in entries)
    return PreparedAdapter(id=name, fingerprint=name, files=(f"/{name}",), entries=parts, bytes=1)


def demand(prepared: PreparedAdapter, module: str) -> int:
    """The pages that an adapter needs in a module's pool."""
    return sum(pages_for(e.lora_rank) for e in prepared.entries if e.module == module)


class Slots(RuleBasedStateMachine):
    """Adapters are placed, installed, used and evicted, in any order; a model of dictionaries checks the table."""

    @initialize(slots=st.integers(1, 4), pages=st.integers(1, 6))
    def make(self, slots: int, pages: int) -> None:
        self.numbers = count()
        self.pages = dict.fromkeys(MODULES, pages)
        self.slots = AdapterSlots(slots, self.pages)
        self.slot_count = slots
        self.resident: dict[str, PreparedAdapter] = {}  # least recently used first
        self.ready: set[str] = set()
        self.pins: dict[str, int] = {}

    def fits_beside(self, new: PreparedAdapter, others: list[str]) -> bool:
        if len(others) >= self.slot_count:
            return False
        used = {m: sum(demand(self.resident[o], m) for o in others) for m in MODULES}
        return all(used[m] + demand(new, m) <= self.pages[m] for m in MODULES)

    @rule(entries=ENTRIES, data=st.data())
    def place(self, entries: list[tuple[int, str, int]], data: st.DataObject) -> None:
        new = adapter(f"a{next(self.numbers)}", *entries)
        if any(demand(new, module) > self.pages[module] for module in MODULES):
            with pytest.raises(AdapterRefused, match="--adapter-memory"):
                self.slots.check_size(new)
            return
        self.slots.check_size(new)
        keep = data.draw(st.sets(st.sampled_from(sorted(self.resident)))) if self.resident else set()
        idle = [n for n in self.resident if n in self.ready and not self.pins[n] and n not in keep]
        slot_of = {self.slots.get(name).slot: name for name in self.resident}  # type: ignore[union-attr]
        commands = place(self.slots, new, keep)
        evicted = [slot_of[command.slot] for command in commands or () if isinstance(command, ClearSlot)]
        stay = [name for name in self.resident if name not in idle]
        assert (commands is not None) == self.fits_beside(new, stay)
        assert evicted == idle[: len(evicted)], "least recently used first"
        if commands is None:
            assert all(self.slots.get(name) for name in self.resident), "nothing is evicted"
            return
        install = commands[-1]
        assert isinstance(install, InstallAdapter)
        if evicted:
            left = [name for name in self.resident if name not in evicted[:-1]]
            assert not self.fits_beside(new, left), "no adapter is evicted without need"
        for name in evicted:
            del self.resident[name]
            self.ready.discard(name)
        assert [(p.layer, p.module, p.lora_rank, p.scale) for p in install.placements] == [(*e, 2.0) for e in entries]
        assert all(len(p.pages) * PAGE_ROWS >= p.lora_rank > (len(p.pages) - 1) * PAGE_ROWS for p in install.placements)
        self.resident[new.fingerprint] = new
        self.pins[new.fingerprint] = 0

    @precondition(lambda self: set(getattr(self, "resident", ())) - self.ready)
    @rule(data=st.data(), works=st.booleans())
    def finish_installation(self, data: st.DataObject, works: bool) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.resident) - self.ready)))
        if works:
            self.slots.mark_ready(name)
            self.ready.add(name)
        else:
            self.slots.remove(name)
            del self.resident[name]

    @precondition(lambda self: getattr(self, "ready", ()))
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.ready)))
        self.slots.pin(name)
        self.pins[name] += 1
        self.resident[name] = self.resident.pop(name)

    @precondition(lambda self: any(getattr(self, "pins", {}).get(n) for n in getattr(self, "resident", ())))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n in self.resident if self.pins[n])))
        self.slots.unpin(name)
        self.pins[name] -= 1

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "slots"):
            return
        self.slots.check_integrity()
        assert self.slots.counts() == (len(self.resident), sum(1 for n in self.resident if self.pins[n]))
        pinned = {n: self.pins[n] for n in self.resident if self.pins[n]}
        fewest = least_used(self.slots, exclude=set())
        assert (fewest is None) == (not pinned)
        assert fewest is None or pinned[fewest] == min(pinned.values())


Slots.TestCase.settings = settings(max_examples=40, deadline=None)
TestSlots = Slots.TestCase


def test_unknown_module_is_refused() -> None:
    with pytest.raises(AdapterRefused, match="lm_head"):
        AdapterSlots(1, {"q_proj": 4}).check_size(adapter("a", (0, "lm_head", 8)))


def test_adapter_in_use_is_never_removed_or_pinned_before_it_is_ready() -> None:
    slots = AdapterSlots(1, {"q_proj": 1})
    slots.place(adapter("a", (0, "q_proj", 1)))
    with pytest.raises(AssertionError, match="before every rank"):
        slots.pin("a")
    slots.mark_ready("a")
    slots.pin("a")
    assert place(slots, adapter("b", (0, "q_proj", 1)), keep=set()) is None
    assert slots.in_use("a")
    slots.unpin("a")
    assert not slots.in_use("a")
    with pytest.raises(AssertionError, match="too often"):
        slots.unpin("a")
    commands = place(slots, adapter("b", (0, "q_proj", 1)), keep=set())
    assert commands is not None
    assert commands[0] == ClearSlot(0)
    assert isinstance(commands[1], InstallAdapter)
    slots.mark_ready("b")
    slots.pin("b")
    with pytest.raises(AssertionError, match="in use"):
        slots.remove("b")
