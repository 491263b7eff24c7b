"""Protocol upgrades: WebSocket handshakes are refused, and h2c is accepted with the whole body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from loguru import logger
from support.api_caller import CHAT, MESSAGES
from support.http2_client import Http2Client
from support.scripted_server import Running, scripted_server

from motet.api.http.api_keys import key_line
from motet.core.settings import Settings

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: {version}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PATHS = ("/", "/v1/responses", CHAT, "/generate", "/no/such/route", "/health")


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What is logged at WARNING and above meanwhile, and what the event loop reports of failed tasks."""
    lines: list[str] = []
    number = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(number)


def serve(
    root: Path,
    complaints: list[str],
    scenario: Callable[[Running], Awaitable[None]],
    settings: Settings | None = None,
) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
        async with scripted_server(root, settings) as server:
            await scenario(server)
            async with httpx2.AsyncClient() as other:
                assert (await other.get(server.url + "/health")).status_code == 200

    asyncio.run(main())
    assert complaints == []


@pytest.mark.parametrize("frames", [b"", b"\x81\x85\x00\x00\x00\x00hello"])
@pytest.mark.parametrize("version", ["13", "8"])
@pytest.mark.parametrize("keys", [False, True])
def test_a_websocket_handshake_is_a_426_on_every_path(
    tmp_path: Path, complaints: list[str], keys: bool, version: str, frames: bytes
) -> None:
    async def scenario(server: Running) -> None:
        for path in PATHS:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HANDSHAKE.format(path=path, version=version).encode() + frames)
            head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
            writer.close()
            status, *lines = head.decode().lower().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            assert status.startswith("http/1.1 426 ")
            assert (headers["upgrade"], headers["connection"]) == ("http/1.1", "upgrade, close")
            assert headers["x-request-id"].startswith("req_")
            error = json.loads(body)["error"]
            assert (error["code"], error["type"]) == ("upgrade_required", "invalid_request_error")

    settings = Settings()
    if keys:
        (tmp_path / "keys.txt").write_text(key_line("alice", "secret", admin=False))
        settings = Settings(api_keys=str(tmp_path / "keys.txt"))
    serve(tmp_path / "api", complaints, scenario, settings)


@pytest.mark.parametrize("version", ["13", "8"])
def test_a_websocket_over_http2_is_refused_and_the_connection_goes_on(
    tmp_path: Path, complaints: list[str], version: str
) -> None:
    head = [(":scheme", "http"), (":authority", "localhost"), (":path", "/v1/responses")]

    async def scenario(server: Running) -> None:
        client = Http2Client(*await asyncio.open_connection("127.0.0.1", server.port))
        client.h2.initiate_connection()
        client.h2.send_headers(
            1, [(":method", "CONNECT"), (":protocol", "websocket"), *head, ("sec-websocket-version", version)]
        )
        await client.flush()
        headers, body = await client.answer()
        assert headers[":status"] == "426"
        assert json.loads(body)["error"]["code"] == "upgrade_required"
        client.h2.send_headers(3, [(":method", "GET"), *head[:2], (":path", "/health")], end_stream=True)
        await client.flush()
        assert (await client.answer())[0][":status"] == "200"
        client.close()

    serve(tmp_path, complaints, scenario)


UPGRADE = "Host: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: {settings}\r\n"


def _h1_body(content: bytes) -> bytes:
    """The body of an HTTP/1.1 answer whose bytes are `content`."""
    head, _, rest = content.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    body = b""
    while rest and (size := int(rest.partition(b"\r\n")[0], 16)):
        rest = rest.partition(b"\r\n")[2]
        body, rest = body + rest[:size], rest[size + 2 :]
    return body


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_comes_with_an_h2c_upgrade_arrives_whole(
    tmp_path: Path, complaints: list[str], chunked: bool, streams: bool
) -> None:
    """JDK's HttpClient sends its first POST so; a server that forgets the body answers nothing, or 400."""
    text = "ahoy " * 300
    request = {"model": "", "messages": [{"role": "user", "content": text}], "stream": streams}

    async def scenario(server: Running) -> None:
        body = json.dumps(request).encode()
        if chunked:
            pieces = [body[start : start + 500] for start in range(0, len(body), 500)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"
        upgrade = UPGRADE.format(settings="AAEAAEAAAAIAAAAB")
        head = f"POST {CHAT} HTTP/1.1\r\n{upgrade}Content-Type: application/json\r\n{length}\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode())
        await writer.drain()
        await asyncio.sleep(0.05)  # the body comes in a packet of its own
        writer.write(body + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        content = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert content.startswith(b"HTTP/1.1 200 ")
        first, _, second = content.rpartition(b"HTTP/1.1 200 ")
        assert b'"status":"ok"' in second  # the connection goes on with the next request
        if streams:
            assert _h1_body(first).endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(_h1_body(first))["choices"][0]["message"]["content"] == "Hello!"
        assert text in server.api.services.tokenizer.decode(server.api.engine.submits[-1].prompt)

    serve(tmp_path, complaints, scenario)


def test_an_h2c_upgrade_without_a_body_goes_on_in_http2(tmp_path: Path, complaints: list[str]) -> None:
    async def scenario(server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        client = Http2Client(reader, writer)
        settings = (client.h2.initiate_upgrade_connection() or b"").decode()
        writer.write(f"GET /health HTTP/1.1\r\n{UPGRADE.format(settings=settings)}\r\n".encode())
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 101 ")
        await client.flush()
        headers, _ = await client.answer()
        assert headers[":status"] == "200"
        body = json.dumps({"model": "", "messages": MESSAGES}).encode()
        target = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", CHAT)]
        client.h2.send_headers(3, [*target, ("content-type", "application/json")])
        client.h2.send_data(3, body, end_stream=True)
        await client.flush()
        headers, content = await client.answer()
        assert headers[":status"] == "200"
        assert json.loads(content)["choices"][0]["message"]["content"] == "Hello!"
        client.close()

    serve(tmp_path, complaints, scenario)


@pytest.mark.parametrize(
    "settings", ["", "HTTP2-Settings: !!!\r\n", "HTTP2-Settings: AAAA\r\n", "HTTP2-Settings: a\r\n"]
)
def test_a_malformed_h2c_upgrade_does_not_affect_others(tmp_path: Path, complaints: list[str], settings: str) -> None:
    async def scenario(server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n{settings}\r\n"
        writer.write(head.encode())
        await asyncio.wait_for(reader.read(1 << 16), 5)
        writer.close()

    serve(tmp_path, complaints, scenario)
