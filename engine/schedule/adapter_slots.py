"""Adapter slots and pool pages: which adapter sits where on the ranks. Knows no tensors.

    absent ──place──> LOADING ──installed──> READY ──(unpinned, room needed)──> absent

Rank 0 alone decides; all ranks follow, so page numbers mean the same everywhere. A slot in use is pinned and
never moves. Pages are counted by module, since each module has a pool of its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from motet.core.errors import AdapterRefused
from motet.core.messages import PreparedAdapter
from motet.engine.schedule.plan import InstallAdapter, Placement

PAGE_ROWS = 16
"""Rank rows in a pool page: the unit in which an adapter's rank is paid for."""


def pages_for(rank: int) -> int:
    """Pool pages that a LoRA pair of this rank takes."""
    return -(-rank // PAGE_ROWS)


@dataclass(slots=True)
class Resident:
    """An adapter in a slot. `pins` counts the running sequences that use it."""

    adapter: PreparedAdapter
    slot: int
    placements: tuple[Placement, ...]
    ready: bool = False
    pins: int = 0


class AdapterSlots:
    """The slot table. `pages[module]` is how many pages that module's pool has."""

    def __init__(self, slots: int, pages: dict[str, int]) -> None:
        self.total = slots
        self.evictions = 0
        self.evicted: list[PreparedAdapter] = []  # since the owner last emptied it
        self._pages_total = dict(pages)
        self._free_slots = list(range(slots - 1, -1, -1))
        self._free_pages = {module: list(range(n - 1, -1, -1)) for module, n in pages.items()}
        self._residents: OrderedDict[str, Resident] = OrderedDict()  # least recently used first

    def admit(self, adapter: PreparedAdapter) -> None:
        """Raise AdapterRefused if `adapter` could not be placed even into an empty pool."""
        for module, pages in _demand(adapter).items():
            total = self._pages_total.get(module, 0)
            if pages > total:
                raise AdapterRefused(
                    f"the adapter needs {pages} pages of {PAGE_ROWS} rank rows for {module} and the pool has "
                    f"{total}; start the server with a larger --adapter-memory",
                    param="model",
                )

    def get(self, fingerprint: str) -> Resident | None:
        """The adapter's slot, loading or ready; None when it is absent."""
        return self._residents.get(fingerprint)

    def pin(self, fingerprint: str) -> int:
        """Use a ready adapter; returns its slot."""
        resident = self._residents[fingerprint]
        assert resident.ready, "a slot is pinned before every rank has it"
        resident.pins += 1
        self._residents.move_to_end(fingerprint)
        return resident.slot

    def unpin(self, fingerprint: str) -> None:
        """One sequence less uses the adapter."""
        resident = self._residents[fingerprint]
        assert resident.pins > 0, "an adapter is unpinned too often"
        resident.pins -= 1

    def place(self, adapter: PreparedAdapter, keep: Collection[str]) -> tuple[list[int], InstallAdapter | None]:
        """Find room for an absent adapter, evicting unpinned ones (least recently used first, none in `keep`).

        Returns the slots to clear and the installation to send, which is None when there is no room; then
        nothing was evicted either.
        """
        victims: list[Resident] = []
        candidates = [
            r for r in self._residents.values() if r.ready and not r.pins and r.adapter.fingerprint not in keep
        ]
        while not self._fits(adapter, victims):
            if not candidates:
                return [], None
            victims.append(candidates.pop(0))
        self.evictions += len(victims)
        self.evicted += [victim.adapter for victim in victims]
        cleared = [self.drop(victim.adapter.fingerprint) for victim in victims]
        slot = self._free_slots.pop()
        placements = tuple(
            Placement(
                e.layer,
                e.module,
                tuple(self._free_pages[e.module].pop() for _ in range(pages_for(e.rank))),
                e.rank,
                e.scale,
            )
            for e in adapter.entries
        )
        self._residents[adapter.fingerprint] = Resident(adapter, slot, placements)
        return cleared, InstallAdapter(slot, adapter.fingerprint, adapter.files, placements, adapter.digests)

    def installed(self, fingerprint: str) -> None:
        """Every rank has the adapter."""
        self._residents[fingerprint].ready = True

    def drop(self, fingerprint: str) -> int:
        """Empty an unpinned adapter's slot and free its pages; returns the slot."""
        resident = self._residents.pop(fingerprint)
        assert not resident.pins, "a slot in use is dropped"
        for placement in resident.placements:
            self._free_pages[placement.module].extend(placement.pages)
        self._free_slots.append(resident.slot)
        return resident.slot

    def lightest(self, exclude: Collection[str]) -> str | None:
        """The adapter in use with the fewest pins, outside `exclude`: the one to drain when another starves."""
        pinned = [r for r in self._residents.values() if r.pins and r.adapter.fingerprint not in exclude]
        return min(pinned, key=lambda r: r.pins).adapter.fingerprint if pinned else None

    def in_use(self, fingerprint: str) -> bool:
        """Whether a running sequence uses the adapter."""
        resident = self._residents.get(fingerprint)
        return resident is not None and resident.pins > 0

    def counts(self) -> tuple[int, int]:
        """How many adapters are resident, and how many of them pinned."""
        return len(self._residents), sum(1 for r in self._residents.values() if r.pins)

    def residents(self) -> list[PreparedAdapter]:
        """The adapters in slots, those in use last."""
        return [r.adapter for r in sorted(self._residents.values(), key=lambda r: r.pins > 0)]

    def _fits(self, adapter: PreparedAdapter, victims: list[Resident]) -> bool:
        if len(self._free_slots) + len(victims) < 1:
            return False
        freed: dict[str, int] = {}
        for victim in victims:
            for placement in victim.placements:
                freed[placement.module] = freed.get(placement.module, 0) + len(placement.pages)
        demand = _demand(adapter)
        return all(len(self._free_pages[m]) + freed.get(m, 0) >= pages for m, pages in demand.items())

    def check_integrity(self) -> None:
        """Assert that every slot and every page is free or held exactly once."""
        slots = [r.slot for r in self._residents.values()] + self._free_slots
        assert sorted(slots) == list(range(self.total)), "slots are lost or held twice"
        for module, total in self._pages_total.items():
            held = [p for r in self._residents.values() for x in r.placements if x.module == module for p in x.pages]
            assert sorted(held + self._free_pages[module]) == list(range(total)), f"pages of {module} are lost"


def _demand(adapter: PreparedAdapter) -> dict[str, int]:
    demand: dict[str, int] = {}
    for entry in adapter.entries:
        demand[entry.module] = demand.get(entry.module, 0) + pages_for(entry.rank)
    return demand
