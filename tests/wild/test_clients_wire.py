"""How known clients use HTTP, byte by byte: the "Wire", "Streams" and "Limits" of the public reports."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.api_caller import Caller, drive
from support.request_cases import CHAT, COMPLETIONS, MESSAGES, Row, check, send, stream_events

BODY = json.dumps({"model": "", "messages": MESSAGES, "max_tokens": 1}).encode()
JSON = "Content-Type: application/json\r\n"
LENGTH = f"Content-Length: {len(BODY)}\r\n"
HOST = "Host: localhost\r\n"
CHUNKED = b"".join(b"%x\r\n%s\r\n" % (len(BODY[at : at + 9]), BODY[at : at + 9]) for at in range(0, len(BODY), 9))
UPGRADE = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def exchange(url: str, *pieces: bytes, until: bytes = b'"finish_reason":"length"') -> bytes:
    """The server's answer to `pieces`, sent separately, until the connection ends or up to `until`."""

    async def run() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx2.URL(url).port)
        content = b""
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)
        async with asyncio.timeout(60):
            while (part := await reader.read(1 << 16)) and until not in (content := content + part):
                pass
        writer.close()
        return content

    return asyncio.run(run())


def head(*headers: str, line: str = f"POST {CHAT} HTTP/1.1") -> bytes:
    return "".join([f"{line}\r\n", *headers, "\r\n"]).encode()


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([head(HOST, JSON, LENGTH) + BODY], id="plain"),
        pytest.param([head(HOST, JSON, LENGTH, "Expect: 100-continue\r\n"), BODY], id="expect-100"),
        pytest.param([head(HOST, JSON, "Transfer-Encoding: chunked\r\n"), CHUNKED + b"0\r\n\r\n"], id="chunked"),
        pytest.param(
            [head(HOST, JSON, "Transfer-Encoding: chunked\r\n"), CHUNKED + b"0\r\nX-Sum: 1\r\n\r\n"], id="trailer"
        ),
        pytest.param([head(HOST, JSON, LENGTH, line=f"POST {CHAT} HTTP/1.0") + BODY], id="http-1.0"),
        pytest.param([head(JSON, LENGTH, line=f"POST {CHAT} HTTP/1.0") + BODY], id="http-1.0-without-host"),
        pytest.param(
            [head(HOST, JSON, LENGTH, line=f"POST http://localhost{CHAT} HTTP/1.1") + BODY], id="absolute-uri"
        ),
        # langchain4j #3682, spring-ai #3567, vllm #57203, uvicorn #2722, lmstudio #1079
        pytest.param([head(HOST, JSON, LENGTH, UPGRADE), BODY], id="h2c-upgrade"),
        pytest.param(
            [head(HOST, JSON, "Transfer-Encoding: chunked\r\n", UPGRADE), CHUNKED + b"0\r\n\r\n"],
            id="h2c-upgrade-chunked",
        ),
        pytest.param([head(HOST, JSON, LENGTH, "Authorization: Bearer \r\n") + BODY], id="bearer-empty"),
        pytest.param([head(HOST, JSON, LENGTH, "Authorization: Bearer Bearer x\r\n") + BODY], id="bearer-double"),
        pytest.param([head(HOST, JSON, LENGTH, "Authorization: Basic YTpi\r\n") + BODY], id="basic"),
        pytest.param([head(HOST, "Content-Type: application/json; charset=utf-8\r\n", LENGTH) + BODY], id="charset"),
    ],
)
def test_what_is_answered(server_url: str, pieces: list[bytes]) -> None:
    content = exchange(server_url, *pieces)
    if content.startswith(b"HTTP/1.1 100 "):
        content = content.partition(b"\r\n\r\n")[2]
    assert content.startswith(b"HTTP/1.1 200 ")
    assert b'"finish_reason":"length"' in content


def test_pipelined_requests_are_answered_in_order(server_url: str) -> None:
    content = exchange(server_url, (head(HOST, JSON, LENGTH) + BODY) * 2 + HEALTH, until=b'"status":"ok"')
    assert content.count(b"HTTP/1.1 200 ") == 3
    assert content.rindex(b'"finish_reason":"length"') < content.index(b'"status":"ok"')


def test_a_connection_is_used_again_after_a_stream(server_url: str) -> None:
    body = json.dumps({"model": "", "messages": MESSAGES, "max_tokens": 1, "stream": True}).encode()
    request = head(HOST, JSON, f"Content-Length: {len(body)}\r\n") + body
    content = exchange(server_url, request, HEALTH, until=b'"status":"ok"')
    assert content.index(b"data: [DONE]") < content.index(b'"status":"ok"')


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/models", "/no/such/route"])
def test_a_close_is_announced_where_the_body_is_not_read(server_url: str, path: str) -> None:
    """A client sends the body in a separate packet, and its next request on the same connection."""
    content = exchange(server_url, head(HOST, JSON, LENGTH, line=f"POST {path} HTTP/1.1"), BODY, until=b"}}")
    answer = content.partition(b"\r\n\r\n")[0].lower()
    assert answer.startswith((b"http/1.1 404 ", b"http/1.1 405 "))
    assert b"\r\nconnection: close" in answer


@pytest.mark.parametrize("line", ["GET //v1/models HTTP/1.1", "GET /v1/models HTTP/1.1"])
def test_a_second_slash_before_the_path(server_url: str, line: str) -> None:
    """open-webui #12117."""
    content = exchange(server_url, head(HOST, line=line), until=b'"object":"list"')
    assert content.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_leaves_ends_its_request(client: httpx2.Client) -> None:
    body = {"model": "", "prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with client.stream("POST", COMPLETIONS, json=body) as response:
        assert next(response.iter_lines()).startswith("data: ")

    async def wait_until_idle() -> None:
        async with asyncio.timeout(20), httpx2.AsyncClient(base_url=client.base_url) as other:
            while (await other.get("/health")).json()["engine"]["running"]:
                await asyncio.sleep(0.05)

    asyncio.run(wait_until_idle())


AZURE = "/openai/deployments/x/chat/completions?api-version=2024-10-21"
REFUSED = [
    Row("trailing-slash", "(none)", f"{CHAT}/", {}, 404, "not_found", None, f"did you mean {CHAT}?"),
    Row("without-v1", "(none)", "/chat/completions", {}, 404, "not_found", None, f"did you mean {CHAT}?"),
    Row("azure", "(none)", AZURE, {}, 404, "not_found", None, f"did you mean {CHAT}?"),
    Row("two-slashes", "open-webui #12117", "/v1//models", None, 404, "not_found", None, "did you mean /v1/models?"),
    *(
        Row(
            f"host-{name}",
            "(none)",
            "/v1/models",
            None,
            403,
            "permission_denied",
            None,
            f"--allowed-host {name}",
            headers={"host": f"{name}:8080"},
        )
        for name in ("host.docker.internal", "motet")
    ),
]


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.slug)
def test_what_is_refused_with_advice(client: httpx2.Client, row: Row) -> None:
    check(row, send(client, row))


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (gzip.compress(BODY), {"content-type": "application/json", "content-encoding": "gzip"}, "compressed (gzip)"),
        (BODY, {}, "content-type: application/json"),
        (BODY, {"content-type": "text/plain"}, "content-type: application/json"),
    ],
    ids=["gzip", "no-content-type", "text-plain"],
)
def test_other_encodings_are_refused(
    client: httpx2.Client, content: bytes, headers: dict[str, str], words: str
) -> None:
    response = client.post(CHAT, content=content, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (415, "unsupported_media_type")
    assert words in error["message"]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize(
    ("path", "more"),
    [
        (CHAT, {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}),
        (COMPLETIONS, {"prompt": "The sea", "logprobs": 2, "echo": True}),
    ],
)
def test_streams_with_choices_logprobs_and_usage(
    client: httpx2.Client, path: str, more: dict[str, Any], n: int
) -> None:
    body = {"model": "", "max_tokens": 3, "ignore_eos": True, "stream": True, "n": n, **more}
    *chunks, last = stream_events(client.post(path, json={**body, "stream_options": {"include_usage": True}}))
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 3 * n)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert {choice["index"] for choice in choices} == set(range(n))
    assert sum(choice["finish_reason"] == "length" for choice in choices) == n
    found = [choice["logprobs"] for choice in choices if choice["logprobs"]]
    tokens = sum(len(each["content"] if "content" in each else each["tokens"]) for each in found)
    assert tokens == n * (3 if path == CHAT else 3 + last["usage"]["prompt_tokens"])


@pytest.mark.parametrize(
    ("options", "ignored"),
    [
        ({}, None),
        (None, None),
        ({"include_usage": False, "continuous_usage_stats": True}, "stream_options.continuous_usage_stats"),
    ],
)
def test_stream_options(client: httpx2.Client, options: object, ignored: str | None) -> None:
    body = {"model": "", "messages": MESSAGES, "max_tokens": 1, "stream": True, "stream_options": options}
    response = client.post(CHAT, json=body)
    assert response.headers.get("x-motet-ignored") == ignored
    assert all(chunk.get("usage") is None for chunk in stream_events(response))


def test_limits_of_size(client: httpx2.Client, tmp_path: Path) -> None:
    many = Row(
        "messages", "", CHAT, {"messages": MESSAGES * 4100}, 400, "invalid_value", "messages", "4096 are allowed"
    )
    check(many, send(client, many))
    large = Row("body", "", CHAT, {"messages": "x" * 5_000_000}, 413, "payload_too_large", None, "--max-body")
    check(large, send(client, large))

    async def scenario(caller: Caller) -> None:
        # Only the model's context length ends them, and finish_reason says so.
        for messages in (MESSAGES * 4000, [{"role": "user", "content": "x" * 120_000}]):
            found = await caller.error(CHAT, {"messages": messages})
            assert found == (400, "context_length_exceeded", "messages")

    drive(tmp_path, scenario)
