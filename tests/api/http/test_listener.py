"""Real connections: HTTP/1.1 and HTTP/2, plain and TLS, their limits, and compression."""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
import trustme
from support.api_caller import CHAT, MESSAGES
from support.scripted_server import Running, scripted_server

from motet.api.http import listener
from motet.api.server import supervisor
from motet.api.server.supervisor import allow_open_files, supervise
from motet.core.errors import StartupError
from motet.core.settings import Settings

BODY = {"model": "", "messages": MESSAGES, "stream": True}


def serve(root: Path, scenario: Callable[[Running], Awaitable[None]], settings: Settings | None = None) -> None:
    async def main() -> None:
        async with scripted_server(root, settings) as server:
            await scenario(server)

    asyncio.run(main())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA, tmp_path: Path) -> Settings:
    """Settings for a server with a certificate of `authority`."""
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    certificate.private_key_pem.write_to_path(key)
    return Settings(tls_certificate=str(chain), tls_key=str(key))


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
@pytest.mark.parametrize("tls", [False, True])
def test_both_versions_answer_and_stream(
    tmp_path: Path, secure: Settings, authority: trustme.CA, version: str, tls: bool
) -> None:
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)

    async def scenario(server: Running) -> None:
        two = version == "HTTP/2"
        async with httpx2.AsyncClient(verify=trusted, http1=not two, http2=two) as client:
            answers = await asyncio.gather(*(client.post(server.url + CHAT, json=BODY) for _ in range(4)))
            for answer in answers:
                assert (answer.status_code, answer.http_version) == (200, version)
                assert answer.text.endswith("data: [DONE]\n\n")
            missing = await client.get(server.url + "/v1/models/nobody")
            assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")

    serve(tmp_path / "api", scenario, secure if tls else None)


def test_streams_are_never_compressed(tmp_path: Path) -> None:
    async def scenario(server: Running) -> None:
        async with httpx2.AsyncClient(headers={"accept-encoding": "gzip, br, deflate"}) as client:
            answer = await client.post(server.url + CHAT, json=BODY)
            assert "content-encoding" not in answer.headers

    serve(tmp_path, scenario)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (Settings(tls_certificate="chain.pem"), "must be set together"),
        (Settings(tls_key="key.pem"), "must be set together"),
        (Settings(tls_certificate="absent.pem", tls_key="absent.pem"), "cannot be used"),
        (Settings(tls_certificate=__file__, tls_key=__file__), "cannot be used"),
        (Settings(api_keys="absent.txt"), "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_is_known_before_anything_starts(settings: Settings, complaint: str) -> None:
    with pytest.raises(StartupError, match=complaint):
        supervise(settings)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nx-long: " + b"x" * (400 << 10) + b"\r\n\r\n",
        b"GET /" + b"x" * (400 << 10) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
)
def test_an_invalid_or_too_long_head_is_refused_without_effect_on_others(tmp_path: Path, head: bytes) -> None:
    async def scenario(server: Running) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head)
        try:
            status = await asyncio.wait_for(reader.readline(), 5)
            assert status.split()[1:2] in ([b"400"], [b"431"], []), status
        except ConnectionError:  # it was closed before we had said all
            pass
        finally:
            writer.close()
        async with httpx2.AsyncClient() as client:
            assert (await client.get(server.url + "/health")).status_code == 200

    serve(tmp_path, scenario)


async def raw(server: Running, content: bytes) -> bytes:
    """What the server says to `content`, until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(content)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


def test_a_body_with_two_lengths_is_refused_and_nothing_after_it_is_read(tmp_path: Path) -> None:
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 4\r\n"
    smuggled = "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def scenario(server: Running) -> None:
        for path, status in ((CHAT, 400), ("/nowhere", 400), ("/generate", 422)):
            answer = await raw(server, (head.format(path) + smuggled).encode())
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert (answer.count(b"HTTP/1.1"), b"not both" in answer) == (1, True)

    serve(tmp_path, scenario)


def test_a_connection_that_asks_nothing_is_closed_soon_and_one_that_asked_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "FIRST_REQUEST_SECONDS", 0.1)

    async def scenario(server: Running) -> None:
        for begun in (b"", b"GET /health HTTP/1.1\r\n"):
            assert await raw(server, begun) == b""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(2):
            writer.write(b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 ")
            await asyncio.sleep(0.3)
        assert not reader.at_eof()
        writer.close()

    serve(tmp_path, scenario)


def test_idle_connections_make_room_for_others_and_busy_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "max_connections", lambda: 20)

    async def scenario(server: Running) -> None:
        server.api.engine.script = lambda _: "a long story " * 20
        server.api.engine.step_seconds = 0.01
        async with httpx2.AsyncClient() as client:
            busy = asyncio.create_task(client.post(server.url + CHAT, json=BODY))
            while not server.api.engine.running:
                await asyncio.sleep(0.01)
            idle = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(150)]
            async with httpx2.AsyncClient() as other:
                assert (await other.get(server.url + "/health", timeout=5)).status_code == 200
            assert (await busy).text.endswith("data: [DONE]\n\n")
        for reader, _ in idle[:131]:  # beside the busy one and the one that asked, 18 could stay
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert not any(reader.at_eof() for reader, _ in idle[-18:])
        for _, writer in idle:
            writer.close()

    serve(tmp_path, scenario)


def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    monkeypatch.setattr(supervisor, "OPEN_FILES", min(soft, 512))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(soft, 512), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
