"""Clients that do not read their responses: their requests end, and nothing is buffered for them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from h2.events import StreamReset
from support.api_caller import CHAT, MESSAGES
from support.http2_client import Http2Client
from support.scripted_server import Running, scripted_server

from motet.api.http import slow_readers
from motet.api.http.slow_readers import send_timeout

LARGE: dict[str, Any] = {"model": "", "messages": MESSAGES, "n": 4, "logprobs": True, "top_logprobs": 20}
BODY = {**LARGE, "max_tokens": 1500, "stream": True}


def serve(root: Path, scenario: Callable[[Running], Awaitable[None]]) -> None:
    async def main() -> None:
        async with scripted_server(root) as server:
            server.api.engine.script = lambda _: "a long story " * 150
            server.api.engine.at_once = 64
            await scenario(server)

    asyncio.run(main())


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


def connected(port: int) -> socket.socket:
    """A client with a small buffer, so that not all of an answer fits into the kernel's."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_does_not_read_loses_its_connection(
    tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_readers, "SEND_SECONDS", 0.5)

    async def scenario(server: Running) -> None:
        body = json.dumps({**BODY, "stream": stream}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with connected(server.port) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: len(server.api.engine.running) == 4)
            await until(lambda: server.api.services.drain.running == 0)
            assert not server.api.engine.running
            await until(lambda: _is_reset(client))

    serve(tmp_path, scenario)


def _is_reset(client: socket.socket) -> bool:
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def test_a_stream_whose_client_gives_it_no_room_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_readers, "SEND_SECONDS", 0.5)

    async def scenario(server: Running) -> None:
        client = Http2Client(*await asyncio.open_connection("127.0.0.1", server.port))
        client.h2.initiate_connection()
        head = [(":scheme", "http"), (":authority", "localhost")]
        post = [(":method", "POST"), (":path", CHAT), ("content-type", "application/json")]
        client.h2.send_headers(1, head + post)
        client.h2.send_data(1, json.dumps(BODY).encode(), end_stream=True)
        await client.flush()
        reset = [event for event in await client.until(StreamReset) if isinstance(event, StreamReset)]
        assert [event.stream_id for event in reset] == [1]
        await until(lambda: server.api.services.drain.running == 0)
        assert not server.api.engine.running
        client.h2.increment_flow_control_window(1 << 16)
        client.h2.send_headers(3, [*head, (":method", "GET"), (":path", "/health")], end_stream=True)
        await client.flush()
        headers, _ = await client.answer()
        assert headers[":status"] == "200"
        client.close()

    serve(tmp_path, scenario)


def test_a_client_that_reads_slowly_goes_on_and_one_that_stops_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_readers, "SEND_SECONDS", 0.05)
    left = [10 << 20]

    def slowly() -> int:
        left[0] -= slow_readers.SEND_BYTES
        return left[0]

    async def main() -> None:
        async with send_timeout(slowly):
            await asyncio.sleep(0.4)
        with pytest.raises(TimeoutError):
            async with send_timeout(lambda: 1000):
                await asyncio.sleep(20)

    asyncio.run(main())
