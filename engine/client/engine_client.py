"""The API's client of the engine: submits sequences and receives their tokens. Does not import torch."""

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
from motet.core.model_source import ModelInfo
from motet.engine.client.token_queue import MAX_TOKENS_PER_READ, QueuedBytes, TokenQueue

Answer = TypeVar("Answer")

_decode = msgspec.msgpack.Decoder(FromEngine).decode
_decode_state = msgspec.msgpack.Decoder(EngineState).decode

HELLO_SECONDS = 0.2

MAX_ADAPTERS = 4096
"""Adapters that one client keeps registered. The engine's limit is higher, so it knows all of them."""


class EngineClient:
    """One API process's connection to rank 0, and to the supervisor's reports of the engine's state.

    When the engine goes down, every sequence fails with Unavailable at once. The client then connects to the next
    engine and registers its adapters again.
    """

    def __init__(self, address: str, state_address: str) -> None:
        self._address, self._state_address = address, state_address
        self._context = zmq.asyncio.Context()
        self._encoder = msgspec.msgpack.Encoder()
        self._queues: dict[str, TokenQueue] = {}
        self._queued_bytes: WeakValueDictionary[str, QueuedBytes] = WeakValueDictionary()  # by request id
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
        """Whether the engine accepts requests now; if not, `reason` says why."""
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
        self._tasks = [asyncio.create_task(loop()) for loop in (self._receive, self._watch_state, self._send_hello)]

    async def close(self) -> None:
        """Fail all open requests and disconnect."""
        self._fail_all("the server is shutting down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=200)

    async def wait_ready(self, timeout: float | None) -> ModelInfo:
        """Wait until the engine is up; returns its model. Raises Unavailable after `timeout` seconds (None: never)."""
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError as error:
            raise Unavailable(f"the engine is not ready: {self.reason}") from error
        assert self.model is not None
        return self.model

    async def generate(self, request: AddRequest) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        """Stream the sequence's tokens, several at once if the reader has fallen behind.

        The last event has `finish`. Closing the generator early ends the sequence. Raises Unavailable if the engine is
        not up or goes down, or the error with which the engine refuses the request.
        """
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}; try again shortly")
        request_id = request.id.rpartition("-")[0] or request.id  # shared by the request's sequences
        queue = TokenQueue(self._queued_bytes.setdefault(request_id, QueuedBytes()))
        self._queues[request.id] = queue
        ended = False
        try:
            await self._send(request)
            while not ended:
                events, error = await queue.take()
                ended = error is not None or events[-1].finish is not None
                if events:
                    yield tuple(events)
                if error is not None:
                    raise error
                if len(events) == MAX_TOKENS_PER_READ:
                    await asyncio.sleep(0)
        finally:
            self._queues.pop(request.id, None)
            queue.close()
            if not ended:
                self._abort(request.id)

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
            self._abort(request.id)
            raise
        finally:
            self._vectors.pop(request.id, None)

    async def cancel(self, group: str) -> int:
        """End every sequence of `group`, of all API processes; returns their number. Raises Unavailable."""
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}")
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._cancels.setdefault(group, []).append(answer)
        await self._send(CancelGroup(group))
        return await answer

    def _abort(self, id: str) -> None:
        """End a sequence that has no reader any more."""
        if self.ready:
            # Not awaited: a generator that is being closed by cancellation must not suspend again.
            self._socket.send(self._encoder.encode(AbortRequest(id)))

    async def register(self, adapter: PreparedAdapter) -> None:
        """Register an adapter with the engine, now and after every restart. Idempotent."""
        registered = self._adapters.pop(adapter.fingerprint, None)
        self._adapters[adapter.fingerprint] = adapter  # moves to the end: the first are removed
        if registered is None and self.ready:
            await self._send(RegisterAdapter(adapter))
        if len(self._adapters) > MAX_ADAPTERS:
            self._adapters.pop(next(iter(self._adapters)))

    async def stats(self) -> EngineStats:
        """The engine's counters. Raises Unavailable when it is not up."""
        return await self._call(GetStats(), self._stats)

    async def adapter_use(self) -> AdapterUse:
        """The adapters on the device and those that sequences wait for. Raises Unavailable if the engine is not up."""
        return await self._call(GetAdapterUse(), self._uses)

    async def _call(self, message: ToEngine, waiting: list[asyncio.Future[Answer]]) -> Answer:
        """Send `message` and return its answer; the engine answers messages of one type in order."""
        if not self.ready:
            raise Unavailable(f"the engine is not ready: {self.reason}")
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        waiting.append(answer)
        await self._send(message)
        return await answer

    async def _send(self, message: ToEngine) -> None:
        await self._socket.send(self._encoder.encode(message))

    async def _send_hello(self) -> None:
        """Send Hello until the engine answers, and again whenever the engine is down."""
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
                        if queue := self._queues.get(event.id):
                            if not queue.put(event):
                                del self._queues[event.id]
                                await self._send(AbortRequest(event.id))
                        elif event.finish is None:  # the sequence has no reader any more
                            await self._send(AbortRequest(event.id))
                case Embedding():
                    if (vector := self._vectors.get(message.id)) and not vector.done():
                        vector.set_result(message.vector)
                case SequenceFailure():
                    if queue := self._queues.get(message.id):
                        queue.fail(from_info(message.error))
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
                    await self._engine_is_up(message)

    async def _engine_is_up(self, message: Ready) -> None:
        if message.engine_id == self._engine_id:
            return  # the answer to a repeated Hello
        self._fail_all("the engine was restarted")
        self._engine_id, self.model = message.engine_id, message.model
        for adapter in self._adapters.values():
            await self._send(RegisterAdapter(adapter))
        self._up.set()
        logger.info("engine {} is up", message.engine_id)

    async def _watch_state(self) -> None:
        """Follow the supervisor's reports: it sees within milliseconds that a rank has died."""
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
        for queue in self._queues.values():
            queue.fail(error)
        cancels = [answer for answers in self._cancels.values() for answer in answers]
        waiters: list[asyncio.Future[Any]] = [*self._stats, *self._uses, *self._vectors.values(), *cancels]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(error)
        self._stats.clear()
        self._uses.clear()
        self._cancels.clear()


def _answer(waiting: list[asyncio.Future[Answer]], answer: Answer) -> None:
    """Pass `answer` to the first future in `waiting`, which may be cancelled."""
    if waiting and not (first := waiting.pop(0)).done():
        first.set_result(answer)
