"""Shares work between requests: one running task per key, and the results of finished tasks, bounded."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from motet.api.adapters.disk_cache import Loaded
from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.source_calls import presentable
from motet.core import error_codes
from motet.core.errors import (
    AdapterRefused,
    Forbidden,
    MotetError,
    NotFound,
    Overloaded,
    Unauthenticated,
    Unavailable,
)

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class SingleFlight(Generic[Key, Result]):
    """One running task per key. If a caller is cancelled, the task continues for the others.

    A task without callers continues; with `linger`, it is cancelled after that many seconds.
    """

    def __init__(self, limit: int, linger: float | None = None) -> None:
        self._limit, self._linger = limit, linger
        self._tasks: dict[Key, asyncio.Task[Result]] = {}
        self._waiting: dict[Key, int] = {}
        self._abandoned: set[asyncio.Task[Result]] = set()

    def __contains__(self, key: Key) -> bool:
        return key in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    async def run(self, key: Key, work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the running task for `key`; starts `work()` if there is none.

        Raises the task's exception, Overloaded if `limit` tasks are running, and Unavailable after `close`.
        """
        while (task := self._tasks.get(key)) in self._abandoned:
            await asyncio.wait({task})  # then start a new one
        if task is None:
            if len(self._tasks) >= self._limit:
                raise Overloaded("too many adapters are being looked up or loaded; try again in a moment")
            task = self._tasks[key] = asyncio.create_task(work())
            task.add_done_callback(lambda done: self._ended(key, done))
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise Unavailable("the server is shutting down; try again", code=error_codes.SHUTTING_DOWN) from None
            raise
        finally:
            self._leave(key, task)

    async def close(self) -> None:
        """Cancel all tasks and wait until they end."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _leave(self, key: Key, task: asyncio.Task[Result]) -> None:
        """Count one caller less for `task`; the last one may schedule its cancellation."""
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
            if self._linger is not None and not task.done():
                asyncio.get_running_loop().call_later(self._linger, self._abandon, key, task)

    def _abandon(self, key: Key, task: asyncio.Task[Result]) -> None:
        if key not in self._waiting and not task.done():
            self._abandoned.add(task)
            task.cancel()

    def _ended(self, key: Key, task: asyncio.Task[Result]) -> None:
        del self._tasks[key]
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # marks the exception as retrieved, even without callers


Value = TypeVar("Value")

# Failures that depend on the caller's token: the same load may succeed for another caller.
TOKEN_ERRORS = (Unauthenticated, Forbidden, NotFound)


class Outcomes(Generic[Key]):
    """The outcomes of finished loads: the `remembered` most recent successes and failures."""

    def __init__(self, limits: LoadLimits) -> None:
        self._limits = limits
        self._done: OrderedDict[Key, Loaded] = OrderedDict()
        self._failed: OrderedDict[Key, tuple[float, MotetError]] = OrderedDict()

    def known(self, key: Key) -> Loaded | None:
        """The finished load for `key`, if there is one. Raises its failure, if that is recent."""
        if (loaded := self._done.get(key)) is not None:
            if loaded.intact():
                self._done.move_to_end(key)
                return loaded
            del self._done[key]
        if (failure := self._failed.get(key)) is not None:
            until, error = failure
            if time.monotonic() < until:
                raise presentable(error)
            del self._failed[key]
        return None

    def done(self, key: Key, loaded: Loaded) -> None:
        """Store a successful load."""
        self._store(self._done, key, loaded)

    def failed(self, key: Key, error: MotetError) -> None:
        """Store a failed load, unless the failure depends on the caller's token."""
        if not isinstance(error, TOKEN_ERRORS):
            limits = self._limits
            seconds = limits.refusal_seconds if isinstance(error, AdapterRefused) else limits.failure_seconds
            self._store(self._failed, key, (time.monotonic() + seconds, error))

    def _store(self, cache: OrderedDict[Key, Value], key: Key, value: Value) -> None:
        cache[key] = value
        cache.move_to_end(key)
        if len(cache) > self._limits.remembered:
            cache.popitem(last=False)
