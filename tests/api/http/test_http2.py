"""Invalid and unusual HTTP/2, frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, ResponseReceived, StreamEnded, StreamReset
from loguru import logger
from support.api_caller import CHAT
from support.http2_client import Http2Client
from support.scripted_server import Running, scripted_server

from motet.api.http.http2 import RESET_BURST

Headers = list[tuple[str, str]]
MODELS: Headers = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/v1/models")]


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What is logged as an error meanwhile, and what the event loop says of tasks that failed."""
    lines: list[str] = []
    number = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(number)


def serve(root: Path, complaints: list[str], scenario: Callable[[Running, Http2Client], Awaitable[None]]) -> None:
    """Run `scenario` on a connection of its own; afterwards nobody must have complained."""

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
        async with scripted_server(root) as server:
            client = Http2Client(*await asyncio.open_connection("127.0.0.1", server.port))
            client.h2.initiate_connection()
            await scenario(server, client)
            client.close()
            async with httpx2.AsyncClient() as other:
                assert (await other.get(server.url + "/health")).status_code == 200

    asyncio.run(main())
    assert complaints == []


@pytest.mark.parametrize("together", [True, False])
def test_a_client_that_resets_its_requests_gets_enhance_your_calm(
    tmp_path: Path, complaints: list[str], together: bool
) -> None:
    async def scenario(_: Running, client: Http2Client) -> None:
        for number in range(4000):
            client.h2.send_headers(2 * number + 1, MODELS, end_stream=True)
            if not together:
                await client.flush()
            client.h2.reset_stream(2 * number + 1, ErrorCodes.CANCEL)
        try:
            await client.flush()
            *_, last = await client.until(ConnectionTerminated)
        except ConnectionError:  # it was closed before we had said all
            return
        assert isinstance(last, ConnectionTerminated)
        assert last.error_code == ErrorCodes.ENHANCE_YOUR_CALM

    serve(tmp_path, complaints, scenario)


def test_what_is_taken_back_at_once_is_never_begun(tmp_path: Path, complaints: list[str]) -> None:
    async def scenario(server: Running, client: Http2Client) -> None:
        began = []
        server.app.before_request(lambda: began.append(1))
        for number in range(RESET_BURST // 2):
            client.h2.send_headers(2 * number + 1, MODELS, end_stream=True)
            client.h2.reset_stream(2 * number + 1, ErrorCodes.CANCEL)
        client.h2.send_headers(RESET_BURST + 1, MODELS, end_stream=True)
        await client.flush()
        events = await client.until(StreamEnded)
        assert [event.stream_id for event in events if isinstance(event, ResponseReceived)] == [RESET_BURST + 1]
        assert began == [1]

    serve(tmp_path, complaints, scenario)


def test_priorities_are_not_heeded(tmp_path: Path, complaints: list[str]) -> None:
    async def scenario(_: Running, client: Http2Client) -> None:
        for number in range(3000):
            client.h2.prioritize(2 * number + 3, weight=3, depends_on=2 * number + 5)
        client.h2.send_headers(1, MODELS, end_stream=True)
        await client.flush()
        assert any(isinstance(event, ResponseReceived) for event in await client.until(StreamEnded))

    serve(tmp_path, complaints, scenario)


def test_the_rest_of_a_refused_body_does_not_affect_other_requests(tmp_path: Path, complaints: list[str]) -> None:
    head = [(":method", "POST"), *MODELS[1:3], (":path", CHAT), ("content-length", str(5 << 20))]

    async def scenario(_: Running, client: Http2Client) -> None:
        client.h2.send_headers(1, head)
        await client.flush()
        events = await client.until(StreamEnded)
        assert [dict(event.headers)[":status"] for event in events if isinstance(event, ResponseReceived)] == ["413"]
        client.h2.send_data(1, b"x" * 1000)
        client.h2.send_headers(3, MODELS, end_stream=True)
        await client.flush()
        assert any(isinstance(event, ResponseReceived) for event in await client.until(StreamEnded))

    serve(tmp_path, complaints, scenario)


@pytest.mark.parametrize(
    "head", [[(":method", "CONNECT"), MODELS[2]], [*MODELS[:3], (":path", "/é")], [(":method", "GÉT"), *MODELS[1:]]]
)
def test_a_request_without_a_readable_method_and_path_is_reset(
    tmp_path: Path, complaints: list[str], head: Headers
) -> None:
    async def scenario(_: Running, client: Http2Client) -> None:
        client.h2.send_headers(1, head, end_stream=True)
        client.h2.send_headers(3, MODELS, end_stream=True)
        await client.flush()
        events = await client.until(StreamEnded)
        assert [event.stream_id for event in events if isinstance(event, StreamReset)] == [1]
        assert [event.stream_id for event in events if isinstance(event, ResponseReceived)] == [3]

    serve(tmp_path, complaints, scenario)
