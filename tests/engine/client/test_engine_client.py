"""EngineClient in front of a socket that speaks for the engine: tokens that wait, readers that are slow or leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import zmq
import zmq.asyncio

from motet.core.errors import ErrorInfo, MotetError, Overloaded
from motet.core.messages import (
    AbortRequest,
    AddRequest,
    Hello,
    Ready,
    SequenceFailure,
    ToEngine,
    TokenEvent,
    TokenEvents,
)
from motet.core.model_source import ModelInfo
from motet.core.sampling_params import SamplingParams
from motet.engine.client import token_queue
from motet.engine.client.engine_client import EngineClient
from motet.engine.client.token_queue import MAX_QUEUED_TOKENS, MAX_TOKENS_PER_READ

MODEL = ModelInfo("tiny", "llama", "/nowhere", 259, 256, "float32", 1, (2,))
decode = msgspec.msgpack.Decoder(ToEngine).decode


@dataclass
class Rank:
    """Rank 0's side of the socket; the test sends its messages one by one."""

    socket: zmq.asyncio.Socket
    client: bytes = b""

    async def receive(self) -> ToEngine:
        """The client's next message, apart from Hello, which is answered."""
        while True:
            self.client, body = await self.socket.recv_multipart()
            message = decode(body)
            if not isinstance(message, Hello):
                return message
            await self.send(Ready("one", MODEL))

    async def send(self, message: Ready | TokenEvents | SequenceFailure) -> None:
        """Send the client a message."""
        await self.socket.send_multipart([self.client, msgspec.msgpack.encode(message)])


def run_client(place: Path, scenario: Callable[[EngineClient, Rank], Awaitable[None]]) -> None:
    """Run `scenario` on a client whose engine is up."""

    async def main() -> None:
        context = zmq.asyncio.Context()
        socket = context.socket(zmq.ROUTER)
        socket.bind(f"ipc://{place}/engine")
        client, rank = EngineClient(f"ipc://{place}/engine", f"ipc://{place}/state"), Rank(socket)
        await client.start()
        greeting = asyncio.create_task(rank.receive())
        await client.wait_ready(5)
        greeting.cancel()
        with suppress(asyncio.CancelledError):
            await greeting
        try:
            async with asyncio.timeout(20):
                await scenario(client, rank)
        finally:
            await client.close()
            context.destroy(linger=0)

    asyncio.run(main())


def submit(id: str = "r") -> AddRequest:
    """A request."""
    return AddRequest(id, (1,), SamplingParams(max_tokens=9999))


def tokens(ids: Sequence[int], ended: bool = False) -> TokenEvents:
    """A step's tokens, all of one sequence."""
    *early, last = ids
    finish = "length" if ended else None
    return TokenEvents((*(TokenEvent("r", id) for id in early), TokenEvent("r", last, finish=finish)))


@asynccontextmanager
async def started(client: EngineClient, rank: Rank) -> AsyncIterator[AsyncGenerator[tuple[TokenEvent, ...], None]]:
    """The rest of a sequence whose first token was read."""
    async with aclosing(client.generate(submit())) as batches:
        first = asyncio.create_task(anext(batches))
        assert await rank.receive() == submit()
        await rank.send(tokens([0]))
        assert [event.token for event in await first] == [0]
        yield batches


def test_a_slow_reader_gets_several_tokens_at_once(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, rank: Rank) -> None:
        async with started(client, rank) as batches:
            await rank.send(tokens(range(1, 100), ended=True))
            async with aclosing(client.generate(submit("other"))) as others:  # its token is sent later
                waiting = asyncio.create_task(anext(others))
                await rank.receive()
                await rank.send(TokenEvents((TokenEvent("other", 5),)))
                await waiting
            rest = [[event.token for event in batch] async for batch in batches]
        assert rest == [list(range(1, MAX_TOKENS_PER_READ + 1)), list(range(MAX_TOKENS_PER_READ + 1, 100))]

    run_client(tmp_path, scenario)


def test_tokens_before_a_failure_are_read_first(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, rank: Rank) -> None:
        received: list[int] = []

        async def read() -> None:
            async for batch in client.generate(submit()):
                received.extend(event.token for event in batch)

        reading = asyncio.create_task(read())
        await rank.receive()
        await rank.send(tokens([1, 2, 3]))
        await rank.send(SequenceFailure("r", ErrorInfo("no luck", "server_error", "internal_error", 500)))
        with pytest.raises(MotetError, match="no luck"):
            await reading
        assert received == [1, 2, 3]

    run_client(tmp_path, scenario)


def test_a_reader_that_is_too_slow_is_aborted_and_queues_no_more(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, rank: Rank) -> None:
        async with started(client, rank) as batches:
            await rank.send(tokens(range(MAX_QUEUED_TOKENS + 1)))
            assert await rank.receive() == AbortRequest("r")
            await rank.send(tokens(range(1000)))  # sent before the abort arrived
            assert await rank.receive() == AbortRequest("r")
            queued = [await anext(batches) for _ in range(MAX_QUEUED_TOKENS // MAX_TOKENS_PER_READ + 1)]
            assert sum(map(len, queued)) == MAX_QUEUED_TOKENS + 1
            with pytest.raises(Overloaded, match="not read fast enough"):
                await anext(batches)

    run_client(tmp_path, scenario)


def test_a_reader_that_closes_ends_the_sequence(tmp_path: Path) -> None:
    async def scenario(client: EngineClient, rank: Rank) -> None:
        async with started(client, rank):
            pass
        assert await rank.receive() == AbortRequest("r")

    run_client(tmp_path, scenario)


def test_the_sequences_of_a_request_share_the_memory_of_queued_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token with logprobs takes many times the memory of one without, and a request may have many sequences."""
    monkeypatch.setattr(token_queue, "MAX_QUEUED_BYTES", 300_000)
    top = tuple((token, -1.0) for token in range(20))  # 2700 bytes by the estimate

    async def scenario(client: EngineClient, rank: Rank) -> None:
        async with AsyncExitStack() as stack:
            first, second, other = [
                await stack.enter_async_context(aclosing(client.generate(submit(id)))) for id in ("a-0", "a-1", "b-0")
            ]
            readers = [asyncio.create_task(anext(reader)) for reader in (first, second, other)]
            for _ in readers:
                await rank.receive()
            for id in ("a-0", "a-1", "b-0"):
                await rank.send(TokenEvents((TokenEvent(id, 0),)))
            await asyncio.gather(*readers)
            for id in ("a-0", "b-0", "a-1"):  # each is within the limit
                await rank.send(TokenEvents(tuple(TokenEvent(id, token, -1.0, top) for token in range(60))))
            assert await rank.receive() == AbortRequest("a-1")
            assert len(await anext(second)) == 300_000 // 2700 - 60 + 1
            with pytest.raises(Overloaded, match="not read fast enough"):
                await anext(second)
            for reader in (first, other):
                assert len(await anext(reader)) == 60
            await rank.send(TokenEvents(tuple(TokenEvent("a-0", token, -1.0, top) for token in range(64))))
            assert len(await anext(first)) == 64  # what was taken counts no more

    run_client(tmp_path, scenario)
