"""With truncation `auto`: how few of the earliest messages have to go for the rest to fit into the context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence

from motet.api.generating.chat_generation import ChatGeneration
from motet.api.schema.chat_messages import Message
from motet.core.errors import ContextExceeded, InvalidRequest

KEPT_ROLES = ("system", "developer")


class Fitting:
    """A conversation; `start` makes the run of a part of it, and raises ContextExceeded if that is too long.

    `may_fit` says, without much work, whether a text can fit at all.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        start: Callable[[list[Message]], Awaitable[ChatGeneration]],
        may_fit: Callable[[str], bool],
    ) -> None:
        self._messages, self._start, self._may_fit = messages, start, may_fit
        self._units = units(messages)

    async def run(self) -> ChatGeneration:
        """The run of the latest messages that fit, of all if they do. Raises MotetError as `start` does."""
        most = len(self._units) - 1
        low = bisect_left(range(most), True, key=self._is_hopeful)
        if low == most:
            return await self._begin(most)
        found = await self._try(low)
        if found is not None:
            return found
        low, high = low + 1, most
        while low < high:
            middle = (low + high) // 2
            run = await self._try(middle)
            if run is None:
                low = middle + 1
            else:
                found, high = run, middle
        # Without a run, `high` has never moved, and says itself what is wrong.
        return found or await self._begin(high)

    async def _try(self, dropped: int) -> ChatGeneration | None:
        """The run without the first `dropped` units; None if that is too long."""
        try:
            try:
                return await self._begin(dropped)
            except InvalidRequest as error:
                if isinstance(error, ContextExceeded) or error.param != "messages" or dropped == 0:
                    raise
                # There are templates that want a conversation to begin with the user.
                asked = self._asking_after(dropped)
                if asked is None:
                    raise
                return await self._begin(asked)
        except ContextExceeded:
            return None

    def _asking_after(self, dropped: int) -> int | None:
        """How many units have to go, more than `dropped`, for a user's message to be the first of the rest."""
        firsts = ((n, unit[0]) for n, unit in enumerate(self._units) if n > dropped and unit)
        return next((n for n, first in firsts if self._messages[first].role == "user"), None)

    async def _begin(self, dropped: int) -> ChatGeneration:
        return await self._start(self._kept(dropped))

    def _kept(self, dropped: int) -> list[Message]:
        gone = {index for unit in self._units[:dropped] for index in unit}
        return [message for index, message in enumerate(self._messages) if index not in gone]

    def _is_hopeful(self, dropped: int) -> bool:
        return self._may_fit("".join(message.text() for message in self._kept(dropped)))


def units(messages: Sequence[Message]) -> list[list[int]]:
    """The indexes of the messages that only go together, from the earliest on; the last unit has to stay.

    Calls go with their results. What is always kept is in no unit, so that the last one may be empty.
    """
    found: list[list[int]] = []
    callers: dict[str, list[int]] = {}
    for index, message in enumerate(messages):
        if message.role in KEPT_ROLES:
            continue
        unit = callers.get(message.tool_call_id or "") if message.role == "tool" else None
        if unit is None:
            found.append(unit := [])
        unit.append(index)
        callers.update((call.id, unit) for call in message.tool_calls or ())
    last = len(messages) - 1
    stays = [unit for unit in found if unit[-1] == last] or [[]]
    return [unit for unit in found if unit[-1] != last] + stays
