"""The API's side of the engine: submits sequences, receives their tokens. Torch-free; knows no text."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec
import zmq
import zmq.asyncio
from loguru import logger

from motet.core.errors import Unavailable, from_info
from motet.core.messages import (
    AbortRequest,
    AdapterUse,
    AddRequest,
    CancelGroup,
    Embedding,
    EngineState,
    EngineStats,
    FromEngine,
    GetAdapterUse,
    GetStats,
    GroupCancelled,
    Hello,
    PreparedAdapter,
    Ready,
    RegisterAdapter,
    SequenceFailure,
    ToEngine,
    TokenEvent,
    TokenEvents,
)
from motet.core.models import ModelInfo
from motet.engine.client.token_queue import MAX_TOKENS_PER_READ, QueuedBytes, TokenQueue

Answer = TypeVar("Answer")

_decode = msgspec.msgpack.Decoder(FromEngine).decode
_decode_state = msgspec.msgpack.Decoder(EngineState).decode

HELLO_SECONDS = 0.2

MAX_ADAPTERS = 4096
"""Adapters that a client keeps registered; the engine remembers more, so that it knows them all."""


class EngineClient:
    """One API process's connection to rank 0, and to the supervisor's word on the engine's health.

    When the engine goes down, every sequence fails with Unavailable at once; the client says hello to the next
    one by itself and registers the adapters again that were registered before.
    """

    def __init__(self, address: str, state_address: str) -> None:
        self._address, self._state_address = address, state_address
        self._context = zmq.asyncio.Context()
        self._encoder = msgspec.msgpack.Encoder()
        self._inboxes: dict[str, TokenQueue] = {}
        self._lags: WeakValueDictionary[str, QueuedBytes] = WeakValueDictionary()  # by request, whose sequences hold it
        self._vectors: dict[str, asyncio.Future[tuple[float, ...]]] = {}
        self._cancels: dict[str, list[asyncio.Future[int]]] = {}
        self._adapters: dict[str, PreparedAdapter] = {}
        self._stats: list[asyncio.Future[EngineStats]] = []
        self._uses: list[asyncio.Future[AdapterUse]] = []
        self._up = asyncio.Event()
        self._engine_id = ""
        self._tasks: list[asyncio.Task[None]] = []
        self.reason = "the engine is starting"
        self.model: ModelInfo | None = None

    @property
    def ready(self) -> bool:
        """Whether the engine takes requests now; `reason` says why not."""
        return self._up.is_set()

    async def start(self) -> None:
        """Connect; does not wait for the engine."""
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(self._address)
        self._state = self._context.socket(zmq.SUB)
        self._state.setsockopt(zmq.SUBSCRIBE, b"")
        self._state.connect(self._state_address)
        self._tasks = [asyncio.create_task(work()) for work in (self._receive, self._watch, self._greet)]

    async def close(self) -> None:
        """Fail what is left and disconnect."""
        self._fail_all("the server is shutting down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=200)

    async def wait_ready(self, timeout: float | None) -> ModelInfo:
        """The model, once the engine is up. Raises Unavailable after `timeout` seconds (None: never)."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError as error:
            raise Unavailable(f"the engine is not ready: {self.reason}") from error
        assert self.model is not None
        return self.model

    async def generate(self, request: AddRequest) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        """The sequence's tokens as they come, several at once where the reader fell behind.

        The last event has `finish`. Closing early ends the sequence. Raises Unavailable when the engine is not up or
        goes down, or what the engine refuses the request with.
        """
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}; try again shortly")
        inbox = TokenQueue(self._lags.setdefault(request.id.rpartition("-")[0] or request.id, QueuedBytes()))
        self._inboxes[request.id] = inbox
        ended = False
        try:
            await self._send(request)
            while not ended:
                events, error = await inbox.take()
                ended = error is not None or events[-1].finish is not None
                if events:
                    yield tuple(events)
                if error is not None:
                    raise error
                if len(events) == MAX_TOKENS_PER_READ:
                    await asyncio.sleep(0)
        finally:
            self._inboxes.pop(request.id, None)
            inbox.close()
            if not ended:
                self._abandon(request.id)

    async def embed(self, request: AddRequest) -> tuple[float, ...]:
        """The pooled vector of a prompt (`request.pooling` says how). Cancelling the caller ends the sequence.

        Raises as `generate` does.
        """
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}; try again shortly")
        vector: asyncio.Future[tuple[float, ...]] = asyncio.get_running_loop().create_future()
        self._vectors[request.id] = vector
        try:
            await self._send(request)
            return await vector
        except asyncio.CancelledError:
            self._abandon(request.id)
            raise
        finally:
            self._vectors.pop(request.id, None)

    async def cancel(self, group: str) -> int:
        """End every sequence of `group`, whoever submitted it; returns how many there were. Raises Unavailable."""
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._cancels.setdefault(group, []).append(answer)
        await self._send(CancelGroup(group))
        return await answer

    def _abandon(self, id: str) -> None:
        """End a sequence that nobody waits for any more."""
        if self.ready:
            # Not awaited: a generator that is being closed by cancellation must not suspend again.
            self._socket.send(self._encoder.encode(AbortRequest(id)))

    async def register(self, adapter: PreparedAdapter) -> None:
        """Make an adapter known to the engine, now and after every restart. Idempotent."""
        known = self._adapters.pop(adapter.fingerprint, None)
        self._adapters[adapter.fingerprint] = adapter  # last in line to be forgotten
        if known is None and self.ready:
            await self._send(RegisterAdapter(adapter))
        if len(self._adapters) > MAX_ADAPTERS:
            self._adapters.pop(next(iter(self._adapters)))

    async def stats(self) -> EngineStats:
        """The engine's counters. Raises Unavailable when it is not up."""
        return await self._ask(GetStats(), self._stats)

    async def adapter_use(self) -> AdapterUse:
        """The adapters on the device and those that are waited for. Raises Unavailable when the engine is not up."""
        return await self._ask(GetAdapterUse(), self._uses)

    async def _ask(self, question: ToEngine, waiting: list[asyncio.Future[Answer]]) -> Answer:
        """The answer to `question`; those of one kind come in the order of the questions in `waiting`."""
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting.append(answer)
        await self._send(question)
        return await answer

    async def _send(self, message: ToEngine) -> None:
        await self._socket.send(self._encoder.encode(message))

    async def _greet(self) -> None:
        """Say hello until there is an answer, and again whenever the engine has gone."""
        while True:
            if not self.ready:
                with contextlib.suppress(zmq.Again):
                    await self._socket.send(self._encoder.encode(Hello()), zmq.NOBLOCK)
            await asyncio.sleep(HELLO_SECONDS)

    async def _receive(self) -> None:
        while True:
            message = _decode(await self._socket.recv())
            match message:
                case TokenEvents():
                    for event in message.events:
                        if inbox := self._inboxes.get(event.id):
                            if not inbox.put(event):
                                del self._inboxes[event.id]
                                await self._send(AbortRequest(event.id))
                        elif event.finish is None:  # nobody reads it any more, and the engine does not know
                            await self._send(AbortRequest(event.id))
                case Embedding():
                    if (vector := self._vectors.get(message.id)) and not vector.done():
                        vector.set_result(message.vector)
                case SequenceFailure():
                    if inbox := self._inboxes.get(message.id):
                        inbox.fail(from_info(message.error))
                    elif (vector := self._vectors.get(message.id)) and not vector.done():
                        vector.set_exception(from_info(message.error))
                case GroupCancelled():
                    for cancel in self._cancels.pop(message.group, ()):
                        if not cancel.done():
                            cancel.set_result(message.sequences)
                case EngineStats():
                    _answer(self._stats, message)
                case AdapterUse():
                    _answer(self._uses, message)
                case Ready():
                    await self._greeted(message)

    async def _greeted(self, message: Ready) -> None:
        if message.engine_id == self._engine_id:
            return  # an answer to an earlier hello, or from an engine that has gone since
        self._fail_all("the engine was restarted")
        self._engine_id, self.model = message.engine_id, message.model
        for adapter in self._adapters.values():
            await self._send(RegisterAdapter(adapter))
        self._up.set()
        logger.info("engine {} is up", message.engine_id)

    async def _watch(self) -> None:
        """Follow the supervisor: it knows within milliseconds when a rank has died."""
        while True:
            state = _decode_state(await self._state.recv())
            if state.state != "up":
                self.reason = state.reason or "the engine is starting"
                if state.state == "down":
                    self._up.clear()
                    self._engine_id = ""
                    self._fail_all(self.reason)

    def _fail_all(self, reason: str) -> None:
        error = Unavailable(f"{reason}; the request was not completed, try again")
        for inbox in self._inboxes.values():
            inbox.fail(error)
        cancels = [answer for answers in self._cancels.values() for answer in answers]
        waiters: list[asyncio.Future[Any]] = [*self._stats, *self._uses, *self._vectors.values(), *cancels]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(error)
        self._stats.clear()
        self._uses.clear()
        self._cancels.clear()


def _answer(waiting: list[asyncio.Future[Answer]], answer: Answer) -> None:
    """Give `answer` to the first in `waiting`, who may have given up."""
    if waiting and not (first := waiting.pop(0)).done():
        first.set_result(answer)
