"""A queue for a few places in which no flow of work makes another wait for all of it. Knows no work, only flows.

Start-time fair queueing (Goyal et al., SIGCOMM 1996) by the seconds that a place was used: the next place goes to the
flow that has had the least of them. So a flow of slow work gets its share of time, not its share of turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from motet.core.errors import Overloaded


class FairQueue:
    """`places` that are used one caller each; `room` callers may wait or work, `room_per_flow` of one flow.

    `task` names in errors what the callers wait for.
    """

    def __init__(self, task: str, places: int, room: int, room_per_flow: int) -> None:
        self._task, self._room, self._room_per_flow = task, room, room_per_flow
        self._free = list(range(places))
        self._waiting: dict[str, deque[asyncio.Future[int]]] = {}
        self._inside: dict[str, int] = {}  # flow -> callers that wait or work
        self._tags: dict[str, float] = {}  # flow -> its virtual time: when its next turn begins
        self._now = 0.0  # the virtual time of the turn that began last

    @asynccontextmanager
    async def place(self, flow: str) -> AsyncIterator[int]:
        """Wait for a place, and have its index. Raises Overloaded where too many are inside already."""
        if self._inside.get(flow, 0) >= self._room_per_flow or sum(self._inside.values()) >= self._room:
            raise Overloaded(f"too many requests are waiting to have {self._task}; try again")
        self._inside[flow] = self._inside.get(flow, 0) + 1
        try:
            index = await self._turn(flow)
            began = time.monotonic()
            try:
                yield index
            finally:
                self._tags[flow] = max(self._now, self._tags.get(flow, 0.0)) + time.monotonic() - began
                self._hand_on(index)
        finally:
            self._leave(flow)

    async def _turn(self, flow: str) -> int:
        self._tags[flow] = max(self._now, self._tags.get(flow, 0.0))
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
            else:  # a place was given to a caller that has just left
                self._hand_on(turn.result())
            raise

    def _hand_on(self, index: int) -> None:
        """Give a place to the flow whose turn it is, or keep it."""
        for flow in sorted(self._waiting, key=lambda flow: self._tags[flow]):
            for turn in self._waiting[flow]:
                if not turn.done():  # a caller that was cancelled is still in the queue until it runs
                    self._waiting[flow].remove(turn)
                    if not self._waiting[flow]:
                        del self._waiting[flow]
                    self._now = max(self._now, self._tags[flow])
                    turn.set_result(index)
                    return
        self._free.append(index)

    def _leave(self, flow: str) -> None:
        self._inside[flow] -= 1
        if not self._inside[flow]:
            del self._inside[flow]
        # Flows that are behind the present have nothing to remember.
        for other in [other for other, tag in self._tags.items() if other not in self._inside and tag <= self._now]:
            del self._tags[other]
        if not self._inside:
            self._tags.clear()
