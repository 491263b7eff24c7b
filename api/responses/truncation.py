"""Truncation `auto`: drops as few of the earliest messages as needed for the rest to fit into the context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence

from motet.api.generating.chat_generation import ChatGeneration
from motet.api.schema.chat_messages import Message
from motet.core.errors import ContextExceeded, InvalidRequest

KEPT_ROLES = ("system", "developer")


class Truncation:
    """A conversation to truncate. `start` prepares the generation of a part; raises ContextExceeded if it is too long.

    `may_fit` is a cheap check whether a text can fit.
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
        """Prepare the generation of the latest messages that fit. Raises MotetError as `start` does."""
        max_dropped = len(self._units) - 1
        low = bisect_left(range(max_dropped), True, key=self._may_fit_without)
        if low == max_dropped:
            return await self._begin(max_dropped)
        best = await self._try(low)
        if best is not None:
            return best
        low, high = low + 1, max_dropped
        while low < high:
            middle = (low + high) // 2
            generation = await self._try(middle)
            if generation is None:
                low = middle + 1
            else:
                best, high = generation, middle
        # If none fits, `high` has not changed, and starting it raises the error.
        return best or await self._begin(high)

    async def _try(self, dropped: int) -> ChatGeneration | None:
        """The generation without the first `dropped` units; None if it is too long."""
        try:
            try:
                return await self._begin(dropped)
            except InvalidRequest as error:
                if isinstance(error, ContextExceeded) or error.param != "messages" or dropped == 0:
                    raise
                # Some templates require that a conversation begins with a user message.
                more_dropped = self._dropped_until_user(dropped)
                if more_dropped is None:
                    raise
                return await self._begin(more_dropped)
        except ContextExceeded:
            return None

    def _dropped_until_user(self, dropped: int) -> int | None:
        """The smallest number of units above `dropped` after which the first message is a user's."""
        firsts = ((n, unit[0]) for n, unit in enumerate(self._units) if n > dropped and unit)
        return next((n for n, first in firsts if self._messages[first].role == "user"), None)

    async def _begin(self, dropped: int) -> ChatGeneration:
        return await self._start(self._remaining(dropped))

    def _remaining(self, dropped: int) -> list[Message]:
        dropped_indexes = {index for unit in self._units[:dropped] for index in unit}
        return [message for index, message in enumerate(self._messages) if index not in dropped_indexes]

    def _may_fit_without(self, dropped: int) -> bool:
        return self._may_fit("".join(message.text() for message in self._remaining(dropped)))


def units(messages: Sequence[Message]) -> list[list[int]]:
    """The indexes of the messages that are dropped together, from the earliest on; the last unit is always kept.

    Calls and their results are one unit. Messages of KEPT_ROLES are in no unit, so the last unit may be empty.
    """
    all_units: list[list[int]] = []
    callers: dict[str, list[int]] = {}
    for index, message in enumerate(messages):
        if message.role in KEPT_ROLES:
            continue
        unit = callers.get(message.tool_call_id or "") if message.role == "tool" else None
        if unit is None:
            all_units.append(unit := [])
        unit.append(index)
        callers.update((call.id, unit) for call in message.tool_calls or ())
    last = len(messages) - 1
    last_unit = [unit for unit in all_units if unit[-1] == last] or [[]]
    return [unit for unit in all_units if unit[-1] != last] + last_unit
