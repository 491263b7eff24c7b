"""Shares a fixed number of slots fairly between flows, such as the owners of requests.

Start-time fair queueing (Goyal et al., SIGCOMM 1996), by the seconds that each flow has used a slot: the next slot
goes to the flow that has used the least. A flow of slow work gets its share of the time, not of the turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from motet.core.errors import Overloaded


class FairQueue:
    """`slots` that each serve one caller. At most `room` callers may wait or work, and `room_per_flow` of one flow.

    Errors use `task` to say what the callers wait for.
    """

    def __init__(self, task: str, slots: int, room: int, room_per_flow: int) -> None:
        self._task, self._room, self._room_per_flow = task, room, room_per_flow
        self._free = list(range(slots))
        self._waiting: dict[str, deque[asyncio.Future[int]]] = {}
        self._callers: dict[str, int] = {}  # flow -> callers that wait or work
        self._start_tags: dict[str, float] = {}  # flow -> the virtual time at which its next turn begins
        self._virtual_time = 0.0  # of the turn that began last

    @asynccontextmanager
    async def acquire(self, flow: str) -> AsyncIterator[int]:
        """Wait for a slot and yield its index. Raises Overloaded if too many callers wait or work already."""
        if self._callers.get(flow, 0) >= self._room_per_flow or sum(self._callers.values()) >= self._room:
            raise Overloaded(f"too many requests are waiting to have {self._task}; try again")
        self._callers[flow] = self._callers.get(flow, 0) + 1
        try:
            index = await self._wait_for_slot(flow)
            began = time.monotonic()
            try:
                yield index
            finally:
                self._start_tags[flow] = (
                    max(self._virtual_time, self._start_tags.get(flow, 0.0)) + time.monotonic() - began
                )
                self._pass_on(index)
        finally:
            self._leave(flow)

    async def _wait_for_slot(self, flow: str) -> int:
        self._start_tags[flow] = max(self._virtual_time, self._start_tags.get(flow, 0.0))
        if self._free:
            return self._free.pop()
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(flow, deque()).append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting[flow].remove(turn)
                if not self._waiting[flow]:
                    del self._waiting[flow]
            else:  # the slot was assigned to this caller, which has just been cancelled
                self._pass_on(turn.result())
            raise

    def _pass_on(self, index: int) -> None:
        """Give the slot to the flow whose turn it is; without one, the slot is free."""
        for flow in sorted(self._waiting, key=lambda flow: self._start_tags[flow]):
            for turn in self._waiting[flow]:
                if not turn.done():  # a caller that was cancelled is still in the queue until it runs
                    self._waiting[flow].remove(turn)
                    if not self._waiting[flow]:
                        del self._waiting[flow]
                    self._virtual_time = max(self._virtual_time, self._start_tags[flow])
                    turn.set_result(index)
                    return
        self._free.append(index)

    def _leave(self, flow: str) -> None:
        self._callers[flow] -= 1
        if not self._callers[flow]:
            del self._callers[flow]
        # A flow whose tag is in the past starts at the current virtual time, as an unknown flow does.
        for other in [
            other for other, tag in self._start_tags.items() if other not in self._callers and tag <= self._virtual_time
        ]:
            del self._start_tags[other]
        if not self._callers:
            self._start_tags.clear()
