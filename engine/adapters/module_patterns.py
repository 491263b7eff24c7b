"""Matches an adapter's regexes against module names in worker processes with limits on memory and time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from functools import cache

import msgspec

from motet.core.errors import AdapterRefused
from motet.engine.adapters.pattern_worker import CPU_SECONDS, MatchAnswer, MatchRequest
from motet.engine.client.subprocess_worker import Crashed, SubprocessWorker, TooSlow

MAX_PATTERN = 4096
_WORKERS = 2  # the number of adapters that are prepared at once
_QUEUE = 64
_SECONDS = 60.0
"""Wall-clock limit per request. The real limit is on CPU time, which does not depend on the machine's load."""

_decode = msgspec.msgpack.Decoder(MatchAnswer).decode


class _Matcher:
    """The workers, and an event loop in its own thread that serves callers from any thread."""

    def __init__(self) -> None:
        name = "motet.engine.adapters.pattern_worker"
        self._workers = [
            SubprocessWorker(name, "an adapter's patterns matched", _SECONDS, _QUEUE) for _ in range(_WORKERS)
        ]
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="patterns", daemon=True).start()

    def exchange(self, frame: bytes) -> bytes:
        """Send one frame to a worker and return its answer. Raises TooSlow, Crashed, Overloaded, Unavailable."""
        return asyncio.run_coroutine_threadsafe(self._exchange(frame), self._loop).result()

    async def _exchange(self, frame: bytes) -> bytes:
        worker = min(self._workers, key=lambda worker: worker.waiting)
        async with worker.acquire():
            return await worker.exchange(frame)


@cache
def _matcher() -> _Matcher:
    return _Matcher()


def first_matches(field: str, patterns: Sequence[str], modules: Sequence[str], *, suffix: bool = False) -> list[int]:
    """For each module the index of the first of `patterns` that matches its whole name, -1 for none.

    With `suffix`, a pattern may also match what follows a dot in the name. `field` is the config's field of
    the patterns. Raises AdapterRefused with it if they are invalid or take too much time or memory.
    """
    if any(len(pattern) > MAX_PATTERN for pattern in patterns):
        raise AdapterRefused(
            f"adapter_config.json: a pattern in {field} is longer than {MAX_PATTERN} characters", param=field
        )
    request = MatchRequest(list(patterns), list(modules), suffix)
    try:
        answer = _decode(_matcher().exchange(msgspec.msgpack.encode(request)))
    except UnicodeEncodeError as error:  # half a surrogate pair, which no module's name has
        raise AdapterRefused(f"adapter_config.json: a pattern in {field} is not valid Unicode", param=field) from error
    except (TooSlow, Crashed) as error:
        raise AdapterRefused(
            f"adapter_config.json: {field} has a bad pattern: matching takes more than {CPU_SECONDS} s; "
            "list the modules' names instead",
            param=field,
        ) from error
    if answer.error:
        raise AdapterRefused(f"adapter_config.json: {field} has a bad pattern: {answer.error}", param=field)
    return answer.first
