"""Attacks by connections: clients that do not read, send nothing, send garbage or disconnect; others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated
from loguru import logger
from support.api_caller import CHAT, MESSAGES
from support.http2_client import Http2Client
from support.scripted_server import Running, scripted_server

from motet.api.http import listener, slow_readers

SECONDS = 10.0
"""The time limit for a normal request during an attack."""

BODY = json.dumps({"model": "", "messages": MESSAGES}).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
HEALTH = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/health")]


def under_attack(root: Path, attack: Callable[[Running], Awaitable[None]]) -> None:
    """Run `attack` on a server; a normal request is answered in time after it, and no error was logged."""
    faults: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(str(context)))
        async with scripted_server(root) as server:
            await attack(server)
            await ordinary(server)

    sink = logger.add(faults.append, level="ERROR", format="{message}")
    try:
        asyncio.run(main())
    finally:
        logger.remove(sink)
    assert faults == []


async def ordinary(server: Running) -> None:
    async with asyncio.timeout(SECONDS), httpx2.AsyncClient(base_url=server.url) as client:
        response = await client.post(CHAT, json={"model": "", "messages": MESSAGES})
        assert response.status_code == 200
        assert (await client.get("/health")).status_code == 200


async def sent(server: Running, content: bytes) -> bytes:
    """The server's answer to `content`, until it closes the connection or sends nothing for a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        writer.write(content)
        while part := await asyncio.wait_for(reader.read(1 << 16), 1):
            answer += part
    writer.close()
    return answer


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(2 * SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_11_a_reader_that_does_not_read_is_ended(tmp_path: Path, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_readers, "SEND_SECONDS", 0.5)

    async def attack(server: Running) -> None:
        engine = server.api.engine
        engine.script, engine.at_once = (lambda _: "a long story " * 150), 64
        large: dict[str, Any] = {"model": "", "messages": MESSAGES, "n": 4, "logprobs": True, "top_logprobs": 20}
        body = json.dumps({**large, "max_tokens": 1500, "stream": stream}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.setblocking(False)
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await until(lambda: len(engine.submits) == 4)
            await until(lambda: server.api.services.drain.running == 0 and not engine.running)

    under_attack(tmp_path, attack)


def test_low_a_flood_of_websocket_handshakes(tmp_path: Path) -> None:
    handshake = (
        b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    async def attack(server: Running) -> None:
        for _ in range(6):
            answers = await asyncio.gather(*(sent(server, handshake) for _ in range(50)))
            assert all(answer.startswith(b"HTTP/1.1 426 ") for answer in answers)

    under_attack(tmp_path, attack)


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /health HTTP/1.1\r\nHost: lo", HEAD + b"Content-Length: 1000\r\n\r\n{"],
    ids=["idle", "slow-heads", "slow-bodies"],
)
def test_withstood_connections_that_wait(tmp_path: Path, begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "FIRST_REQUEST_SECONDS", 1.0)

    async def attack(server: Running) -> None:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(300)]
        for _, writer in opened:
            writer.write(begun)
        await ordinary(server)
        if b"\r\n\r\n" not in begun:
            for reader, _ in opened:
                assert await asyncio.wait_for(reader.read(), SECONDS) == b""
        for _, writer in opened:
            writer.close()

    under_attack(tmp_path, attack)


MALFORMED = {
    "nonsense": b"nonsense\r\n\r\n",
    "nul": b"GET /\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no-host": b"GET /health HTTP/1.1\r\n\r\n",
    "two-hosts": b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "space-in-name": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX : 1\r\n\r\n",
    "long-line": b"GET /" + b"x" * (400 << 10) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "long-header": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (400 << 10) + b"\r\n\r\n",
    "negative-length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "two-lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
    "length-and-chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1",
    "bad-chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "huge-chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffff\r\n",
    "unknown-coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + BODY,
    "coding-twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("form", MALFORMED)
def test_withstood_malformed_http(tmp_path: Path, form: str) -> None:
    async def attack(server: Running) -> None:
        answer = await sent(server, MALFORMED[form])
        assert answer == b"" or answer[9:12] in (b"400", b"408", b"413", b"431", b"501", b"505"), answer[:80]
        assert answer.count(b"HTTP/1.1") <= 1
        assert not server.api.engine.submits

    under_attack(tmp_path, attack)


ODD = {
    "folded": b"GET /health HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",
    "version-9": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("form", ODD)
def test_withstood_odd_http(tmp_path: Path, form: str) -> None:
    async def attack(server: Running) -> None:
        assert (await sent(server, ODD[form])).count(b"HTTP/1.1 200 ") == 1

    under_attack(tmp_path, attack)


def test_withstood_pipelining(tmp_path: Path) -> None:
    async def attack(server: Running) -> None:
        requests = (HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY) * 50
        last = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert (await sent(server, requests + last)).count(b"HTTP/1.1 200 ") == 51

    under_attack(tmp_path, attack)


def rapid_reset(client: Http2Client) -> None:
    for number in range(4000):
        client.h2.send_headers(2 * number + 1, HEALTH, end_stream=True)
        client.h2.reset_stream(2 * number + 1, ErrorCodes.CANCEL)


def pings(client: Http2Client) -> None:
    for number in range(2000):
        client.h2.ping(number.to_bytes(8, "big"))


def settings(client: Http2Client) -> None:
    for number in range(500):
        client.h2.update_settings({4: 65_535 + number})


def priorities(client: Http2Client) -> None:
    client.h2.send_headers(1, HEALTH, end_stream=True)
    for number in range(1000):
        client.h2.prioritize(2 * number + 3, weight=1 + number % 200)


def empty_data(client: Http2Client) -> None:
    client.h2.send_headers(1, [(":method", "POST"), *HEALTH[1:3], (":path", CHAT)])
    for _ in range(1000):
        client.h2.send_data(1, b"")


def window_0(client: Http2Client) -> None:
    client.h2.update_settings({4: 0})
    for number in range(50):
        client.h2.send_headers(2 * number + 1, HEALTH, end_stream=True)


@pytest.mark.parametrize("flood", [rapid_reset, pings, settings, priorities, empty_data, window_0])
def test_withstood_http2(tmp_path: Path, flood: Callable[[Http2Client], None]) -> None:
    async def attack(server: Running) -> None:
        client = Http2Client(*await asyncio.open_connection("127.0.0.1", server.port))
        client.h2.initiate_connection()
        flood(client)
        try:
            await client.flush()
            await ordinary(server)
            if flood is rapid_reset:
                *_, last = await client.until(ConnectionTerminated)
                assert isinstance(last, ConnectionTerminated)
                assert last.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        except ConnectionError:  # it was closed before everything was sent
            pass
        client.close()

    under_attack(tmp_path, attack)


def test_withstood_streams_that_are_cut(tmp_path: Path) -> None:
    async def attack(server: Running) -> None:
        server.api.engine.script, server.api.engine.step_seconds = (lambda _: "x" * 500), 0.005
        body = json.dumps({"model": "", "messages": MESSAGES, "stream": True}).encode()

        async def cut(after: float) -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            await asyncio.sleep(after)
            writer.transport.abort()

        for _ in range(3):
            await asyncio.gather(*(cut(number / 100) for number in range(50)))
        await until(lambda: server.api.services.drain.running == 0 and not server.api.engine.running)
        server.api.engine.step_seconds = 0.0

    under_attack(tmp_path, attack)
