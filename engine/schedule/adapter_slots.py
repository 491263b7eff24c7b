"""The table of adapter slots and pool pages: which adapter is in which slot, with which pages.

    absent ──place──> loading ──mark_ready──> ready ──(unpinned; another adapter needs the room)──> absent

Rank 0 decides for all ranks, so that slot and page numbers are the same on each. The slot of a running sequence's
adapter is pinned. Every module has a pool of its own, so pages are counted per module. Which adapter is evicted is
decided in adapter_eviction.py.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from motet.core.errors import AdapterRefused
from motet.core.messages import PreparedAdapter
from motet.engine.schedule.plan import InstallAdapter, Placement

PAGE_ROWS = 16
"""Rows of a pool page. An adapter's LoRA rank is rounded up to whole pages."""


def pages_for(rank: int, page_rows: int = PAGE_ROWS) -> int:
    """Pages for a LoRA pair of this LoRA rank."""
    return -(-rank // page_rows)


@dataclass(slots=True)
class Resident:
    """An adapter in a slot. It is `ready` once every rank has installed it; `pins` counts its running sequences."""

    adapter: PreparedAdapter
    slot: int
    placements: tuple[Placement, ...]
    ready: bool = False
    pins: int = 0


class AdapterSlots:
    """`slots` slots, and `pages[module]` pages for each module."""

    def __init__(self, slots: int, pages: dict[str, int]) -> None:
        self.total = slots
        self.evictions = 0
        self.evicted: list[PreparedAdapter] = []  # since StatLogger last cleared it
        self._pages_total = dict(pages)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._free_pages = {module: list(range(n - 1, -1, -1)) for module, n in pages.items()}
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first

    def check_size(self, adapter: PreparedAdapter) -> None:
        """Raise AdapterRefused if `adapter` does not fit into an empty pool."""
        for module, pages in _demand(adapter).items():
            total = self._pages_total.get(module, 0)
            if pages > total:
                raise AdapterRefused(
                    f"the adapter needs {pages} pages of {PAGE_ROWS} rank rows for {module} and the pool has "
                    f"{total}; start the server with a larger --adapter-memory",
                    param="model",
                )

    def get(self, fingerprint: str) -> Resident | None:
        """The adapter in its slot, loading or ready; None if it is absent."""
        return self._residents.get(fingerprint)

    def pin(self, fingerprint: str) -> int:
        """Count a running sequence of a ready adapter; returns the slot."""
        resident = self._residents[fingerprint]
        assert resident.ready, "an adapter is pinned before every rank has it"
        resident.pins += 1
        self._residents.move_to_end(fingerprint)
        return resident.slot

    def unpin(self, fingerprint: str) -> None:
        """A sequence of the adapter has left the batch."""
        resident = self._residents[fingerprint]
        assert resident.pins > 0, "an adapter is unpinned too often"
        resident.pins -= 1

    def place(self, adapter: PreparedAdapter) -> InstallAdapter:
        """Give an absent adapter a slot and pages; `fits` says whether there are any."""
        slot = self._free_slots.pop()
        placements = tuple(
            Placement(
                e.layer,
                e.module,
                tuple(self._free_pages[e.module].pop() for _ in range(pages_for(e.lora_rank))),
                e.lora_rank,
                e.scale,
            )
            for e in adapter.entries
        )
        self._residents[adapter.fingerprint] = Resident(adapter, slot, placements)
        return InstallAdapter(slot, adapter.fingerprint, adapter.files, placements, adapter.digests)

    def mark_ready(self, fingerprint: str) -> None:
        """Every rank has installed the adapter."""
        self._residents[fingerprint].ready = True

    def evict(self, fingerprint: str) -> int:
        """Remove an unpinned adapter to make room for another; returns the slot."""
        self.evictions += 1
        self.evicted.append(self._residents[fingerprint].adapter)
        return self.remove(fingerprint)

    def remove(self, fingerprint: str) -> int:
        """Empty an unpinned adapter's slot and free its pages; returns the slot."""
        resident = self._residents.pop(fingerprint)
        assert not resident.pins, "a slot in use is dropped"
        for placement in resident.placements:
            self._free_pages[placement.module].extend(placement.pages)
        self._free_slots.append(resident.slot)
        return resident.slot

    def least_recently_used(self) -> list[Resident]:
        """The adapters in slots, in the order of their last use."""
        return list(self._residents.values())

    def in_use(self, fingerprint: str) -> bool:
        """Whether a running sequence uses the adapter."""
        resident = self._residents.get(fingerprint)
        return resident is not None and resident.pins > 0

    def counts(self) -> tuple[int, int]:
        """How many adapters are in slots, and how many of them are pinned."""
        return len(self._residents), sum(1 for r in self._residents.values() if r.pins)

    def residents(self) -> list[PreparedAdapter]:
        """The adapters in slots; those that running sequences use are last."""
        return [r.adapter for r in sorted(self._residents.values(), key=lambda r: r.pins > 0)]

    def fits(self, adapter: PreparedAdapter, victims: list[Resident]) -> bool:
        """Whether `adapter` could be placed if `victims` were evicted."""
        if len(self._free_slots) + len(victims) < 1:
            return False
        freed: dict[str, int] = {}
        for victim in victims:
            for placement in victim.placements:
                freed[placement.module] = freed.get(placement.module, 0) + len(placement.pages)
        demand = _demand(adapter)
        return all(len(self._free_pages[m]) + freed.get(m, 0) >= pages for m, pages in demand.items())

    def check_integrity(self) -> None:
        """Assert that every slot and every page is either free or used once."""
        slots = [r.slot for r in self._residents.values()] + self._free_slots
        assert sorted(slots) == list(range(self.total)), "a slot is lost or used twice"
        for module, total in self._pages_total.items():
            used = [p for r in self._residents.values() for x in r.placements if x.module == module for p in x.pages]
            assert sorted(used + self._free_pages[module]) == list(range(total)), f"pages of {module} are lost"


def _demand(adapter: PreparedAdapter) -> dict[str, int]:
    demand: dict[str, int] = {}
    for entry in adapter.entries:
        demand[entry.module] = demand.get(entry.module, 0) + pages_for(entry.lora_rank)
    return demand
