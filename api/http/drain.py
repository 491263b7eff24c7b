"""Graceful shutdown: report not ready, refuse new requests, let running ones finish, then end the rest with errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from motet.core import error_codes
from motet.core.errors import Unavailable

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope


class Drain:
    """Counts running requests and background work, and ends them at shutdown.

    Call `mark_not_ready()`, `refuse_new_requests()`, `await wait(seconds)` and `cancel_remaining()`, in this order.
    While `not_ready` is set and `draining` is not, the server still accepts requests.
    """

    def __init__(self) -> None:
        self.running = 0
        self.not_ready = False
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._scopes: set[asyncio.Timeout] = set()

    def mark_not_ready(self) -> None:
        """Make the server report that it is not ready."""
        self.not_ready = True

    def refuse_new_requests(self) -> None:
        """Make `check` refuse new requests."""
        self.mark_not_ready()
        self.draining = True

    def check(self) -> None:
        """Raise Unavailable if the server is shutting down."""
        if self.draining:
            raise Unavailable("the server is shutting down; try again in a moment", code=error_codes.SHUTTING_DOWN)

    async def wait(self, timeout: float) -> bool:
        """Wait until nothing runs, at most `timeout` seconds; returns whether nothing runs."""
        try:
            await asyncio.wait_for(self._idle.wait(), timeout)
        except TimeoutError:
            return False
        return True

    def cancel_remaining(self) -> None:
        """End everything inside `interruptible()`; call `wait` briefly afterwards, so that the errors are sent."""
        for scope in self._scopes:
            scope.reschedule(0)

    @asynccontextmanager
    async def interruptible(self) -> AsyncIterator[None]:
        """Context of code that `cancel_remaining` may end; raises Unavailable then."""
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    yield
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            raise Unavailable(
                "the server shut down before the answer was complete", code=error_codes.SHUTTING_DOWN
            ) from None

    @asynccontextmanager
    async def background_work(self) -> AsyncIterator[None]:
        """Context of work outside of a request, which the drain waits for and may end like a request."""
        self._enter()
        try:
            async with self.interruptible():
                yield
        finally:
            self._leave()

    def _enter(self) -> None:
        self.running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self.running -= 1
        if self.running == 0:
            self._idle.set()

    def count_requests(self, app: ASGIFramework) -> ASGIFramework:
        """Wrap `app`: its HTTP requests count as running from the first byte to the last."""

        async def asgi(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> Any:
            if scope["type"] != "http":
                return await app(scope, receive, send)
            self._enter()
            try:
                return await app(scope, receive, send)
            finally:
                self._leave()

        return asgi
