"""Runs blocking calls on files that may hang (an absent mount, a FIFO), limited per key and never joined at exit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class BlockingCalls:
    """Runs calls in daemon threads: at most `total` at a time, and `per_key` of the same key; the others wait.

    A call that hangs keeps its place until it ends, however long ago its caller gave up. So what hangs under one key
    leaves the places of the other keys alone.
    """

    def __init__(self, name: str, total: int = 64, per_key: int = 2) -> None:
        self._name, self._per_key = name, per_key
        self._total = asyncio.Semaphore(total)
        self._keys: dict[Hashable, asyncio.Semaphore] = {}
        self._users: dict[Hashable, int] = {}

    async def run(self, key: Hashable, call: Callable[[], T]) -> T:
        """The result of `call()`. Raises what it raises; the caller sets a time-out."""
        place = self._keys.setdefault(key, asyncio.Semaphore(self._per_key))
        self._users[key] = self._users.get(key, 0) + 1
        taken: list[asyncio.Semaphore] = []
        try:
            for semaphore in (place, self._total):
                await semaphore.acquire()
                taken.append(semaphore)
        except BaseException:
            self._leave(key, taken)
            raise
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def done(value: T | None, error: BaseException | None) -> None:
            self._leave(key, taken)
            if result.done():
                return  # the caller has given up
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(value)  # type: ignore[arg-type]

        def work() -> None:
            value, failure = None, None
            try:
                value = call()
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                loop.call_soon_threadsafe(done, value, failure)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return await result

    def _leave(self, key: Hashable, taken: list[asyncio.Semaphore]) -> None:
        for semaphore in taken:
            semaphore.release()
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key], self._keys[key]
