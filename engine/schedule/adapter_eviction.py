"""Which adapter leaves its slot when another one needs the room.

1. Unused adapters are evicted, least recently used first.
2. If that is not enough, the running sequences of one adapter are preempted, provided that all of them have a worse
   priority than the waiting sequence that needs the room (admission.py).
3. If that is not possible either and the waiting sequence starves, the adapter with the fewest running sequences is
   drained: it starts no later sequences until it is unused and can be evicted.
"""

from __future__ import annotations

from motet.core.messages import PreparedAdapter
from motet.engine.schedule.adapter_slots import AdapterSlots, Resident
from motet.engine.schedule.plan import ClearSlot, InstallAdapter
from motet.engine.schedule.priority import Precedence
from motet.engine.schedule.sequence import Sequence


def place(slots: AdapterSlots, adapter: PreparedAdapter, keep: set[str]) -> list[ClearSlot | InstallAdapter] | None:
    """Put an absent adapter into a slot, evicting unused adapters that are not in `keep` (fingerprints).

    Returns the commands for the ranks; None, with nothing evicted, if there is no room.
    """
    victims: list[Resident] = []
    unused = [r for r in slots.least_recently_used() if r.ready and not r.pins and r.adapter.fingerprint not in keep]
    while not slots.fits(adapter, victims):
        if not unused:
            return None
        victims.append(unused.pop(0))
    return [*(ClearSlot(slots.evict(victim.adapter.fingerprint)) for victim in victims), slots.place(adapter)]


def least_used(slots: AdapterSlots, exclude: set[str]) -> str | None:
    """The adapter with the fewest running sequences, of those that have any and are not in `exclude`."""
    used = [r for r in slots.least_recently_used() if r.pins and r.adapter.fingerprint not in exclude]
    return min(used, key=lambda r: r.pins).adapter.fingerprint if used else None


class DrainedAdapters:
    """The adapters that are drained, each for one waiting sequence.

    They are drained until that sequence's adapter has a slot, or the sequence is gone.
    """

    def __init__(self, slots: AdapterSlots) -> None:
        self._slots = slots
        self._drained_for: dict[str, Precedence] = {}  # fingerprint -> the waiting sequence

    def update(self, waiting: list[Sequence]) -> None:
        """Drain nothing for sequences that no longer wait."""
        present = {sequence.precedence for sequence in waiting}
        self._drained_for = {name: p for name, p in self._drained_for.items() if p in present}

    def closed_to(self, sequence: Sequence) -> bool:
        """Whether the sequence's adapter is drained for a sequence that goes first."""
        return self._drained_for.get(sequence.request.adapter or "", sequence.precedence) < sequence.precedence

    def any_before(self, sequence: Sequence) -> bool:
        """Whether an adapter is drained for a sequence that goes first; then freed room is reserved for that one."""
        return any(precedence < sequence.precedence for precedence in self._drained_for.values())

    def drain_for(self, sequence: Sequence, keep: set[str]) -> None:
        """Drain the least used adapter that is not in `keep`, unless one that is drained for `sequence` is in use."""
        if any(p == sequence.precedence and self._slots.in_use(name) for name, p in self._drained_for.items()):
            return
        victim = least_used(self._slots, exclude=keep | self._drained_for.keys())
        if victim is not None:
            self._drained_for[victim] = sequence.precedence

    def stop(self, sequence: Sequence) -> None:
        """Drain nothing for `sequence` any more: its adapter has a slot."""
        self._drained_for = {name: p for name, p in self._drained_for.items() if p != sequence.precedence}
