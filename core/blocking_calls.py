"""Runs file operations that may block forever (a lost mount, a FIFO) in daemon threads, limited per key."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class BlockingCalls:
    """Runs at most `total` calls at a time, and `per_key` with the same key; further calls wait.

    A call that hangs occupies its thread until it ends, even if its caller has timed out. The limit per key keeps
    threads free for other keys. Daemon threads do not delay the exit of the process.
    """

    def __init__(self, name: str, total: int = 64, per_key: int = 2) -> None:
        self._name, self._per_key = name, per_key
        self._total = asyncio.Semaphore(total)
        self._keys: dict[Hashable, asyncio.Semaphore] = {}
        self._users: dict[Hashable, int] = {}

    async def run(self, key: Hashable, call: Callable[[], T]) -> T:
        """Return `call()`, or raise its exception. The caller sets a time-out."""
        key_limit = self._keys.setdefault(key, asyncio.Semaphore(self._per_key))
        self._users[key] = self._users.get(key, 0) + 1
        acquired: list[asyncio.Semaphore] = []
        try:
            for semaphore in (key_limit, self._total):
                await semaphore.acquire()
                acquired.append(semaphore)
        except BaseException:
            self._release(key, acquired)
            raise
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()

        def done(value: T | None, error: BaseException | None) -> None:
            self._release(key, acquired)
            if result.done():
                return  # the caller was cancelled or timed out
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
            with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
                loop.call_soon_threadsafe(done, value, failure)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return await result

    def _release(self, key: Hashable, acquired: list[asyncio.Semaphore]) -> None:
        for semaphore in acquired:
            semaphore.release()
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key], self._keys[key]
