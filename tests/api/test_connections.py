"""Real connections: HTTP/1.1 and HTTP/2, in the clear and in TLS, their limits, and what comes back compressed."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest
import trustme
from support.caller import CHAT, MESSAGES
from support.scripted_server import Running, scripted_server

from motet.api.supervisor import supervise
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
        (Settings(tls_certificate="chain.pem"), "go together"),
        (Settings(tls_key="key.pem"), "go together"),
        (Settings(tls_certificate="absent.pem", tls_key="absent.pem"), "cannot be used"),
        (Settings(tls_certificate=__file__, tls_key=__file__), "cannot be used"),
    ],
)
def test_a_certificate_that_is_wrong_is_known_before_anything_starts(settings: Settings, complaint: str) -> None:
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
def test_a_head_that_is_wrong_or_too_long_is_refused_and_harms_nobody(tmp_path: Path, head: bytes) -> None:
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
