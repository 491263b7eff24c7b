"""Requests that are interrupted, over real HTTP: disconnects, engine failures and shutdowns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.scripted_server import Running, scripted_server

from motet.core.errors import Unavailable

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "", "messages": MESSAGES, "max_tokens": 400}
LONG = "a long story " * 20


def drive(tmp_path: Path, scenario: Callable[[Running, httpx2.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        async with (
            scripted_server(tmp_path) as server,
            httpx2.AsyncClient(base_url=server.url, timeout=20) as client,
        ):
            await scenario(server, client)

    asyncio.run(main())


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def slow(server: Running) -> None:
    server.api.engine.script = lambda request: LONG
    server.api.engine.step_seconds = 0.02


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_sequences(tmp_path: Path, stream: bool, n: int) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        slow(server)
        body = json.dumps({**CHAT, "stream": stream, "n": n}).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: len(server.api.engine.running) == n)
        if stream:
            await reader.readuntil(b"data: ")
        writer.close()
        await until(lambda: not server.api.engine.running, 2.0)
        assert server.api.services.drain.running == 0
        # The process is none the worse for it.
        server.api.engine.step_seconds = 0
        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == LONG

    drive(tmp_path, scenario)


@pytest.mark.parametrize("abort", [False, True])
def test_a_client_that_leaves_right_after_sending_is_noticed(tmp_path: Path, abort: bool) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        slow(server)
        body = json.dumps({**CHAT, "stream": True}).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for _ in range(10):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await asyncio.sleep(0)
            writer.transport.abort() if abort else writer.close()
        await asyncio.sleep(0.05)
        await until(lambda: server.api.services.drain.running == 0, 1.0)
        assert not server.api.engine.running

    drive(tmp_path, scenario)


def frames(content: bytes) -> list[Any]:
    """The events of a stream; [DONE] as the text."""
    assert content.endswith(b"\n\n")
    lines = content.decode().removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


@pytest.mark.parametrize("n", [1, 2])
def test_an_error_in_mid_stream_is_the_last_event(tmp_path: Path, n: int) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        server.api.engine.fail_after = 2
        server.api.engine.failure = Unavailable("rank 1 died")
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True, "n": n})
        assert answer.status_code == 200
        events = frames(answer.content)
        assert events[-1] == {
            "error": {
                "message": "rank 1 died",
                "type": "service_unavailable_error",
                "param": None,
                "code": "engine_unavailable",
            }
        }
        assert all("error" not in event for event in events[:-1])
        assert not server.api.engine.running

    drive(tmp_path, scenario)


def test_a_fault_says_nothing_of_its_inside(tmp_path: Path) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        server.api.engine.fail_after = 0
        server.api.engine.failure = RuntimeError("the inside")
        answer = await client.post("/v1/completions", json={"model": "", "prompt": "x"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        streamed = await client.post("/v1/completions", json={"model": "", "prompt": "x", "stream": True})
        assert (streamed.status_code, streamed.json()["error"]["code"]) == (500, "internal_error")
        assert "inside" not in answer.text + streamed.text
        assert "Traceback" not in answer.text + streamed.text

    drive(tmp_path, scenario)


def test_an_engine_that_is_away_is_a_503(tmp_path: Path) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        healthy = (await client.get("/health")).json()
        assert (healthy["status"], healthy["model"], healthy["reason"]) == ("ok", "tiny", None)
        assert (healthy["engine"]["running"], healthy["engine"]["blocks_free"]) == (0, 9)
        server.api.engine.ready, server.api.engine.reason = False, "rank 0 died; starting again"
        health = await client.get("/health")
        assert health.status_code == 503
        reason = "rank 0 died; starting again"
        assert health.json() == {"status": "unavailable", "model": "tiny", "reason": reason, "engine": None}
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "rank 0 died; starting again"
            assert int(answer.headers["retry-after"]) > 0

    drive(tmp_path, scenario)


def test_a_drain_lets_work_finish_and_refuses_new_work(tmp_path: Path) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        slow(server)
        server.api.engine.script = lambda request: "Hello!"
        drain = server.api.services.drain
        running = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await until(lambda: server.api.engine.running)
        drain.refuse_new_requests()
        refused = await client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert "retry-after" in refused.headers
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        assert await drain.wait(5.0)
        assert (await running).json()["choices"][0]["message"]["content"] == "Hello!"

    drive(tmp_path, scenario)


def test_what_a_drain_leaves_over_gets_an_error(tmp_path: Path) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        slow(server)
        drain = server.api.services.drain
        post = "/v1/chat/completions"
        whole = asyncio.create_task(client.post(post, json={**CHAT, "n": 2}))
        streamed = asyncio.create_task(client.post(post, json={**CHAT, "stream": True}))
        await until(lambda: len(server.api.engine.running) == 3)
        drain.refuse_new_requests()
        assert not await drain.wait(0.1)
        drain.cancel_remaining()
        assert await drain.wait(2.0)
        assert not server.api.engine.running
        assert (await whole).status_code == 503
        assert (await whole).json()["error"]["code"] == "shutting_down"
        assert frames((await streamed).content)[-1]["error"]["code"] == "shutting_down"

    drive(tmp_path, scenario)


def test_a_stream_outlives_the_frameworks_time_limit(tmp_path: Path) -> None:
    """Quart cuts a response after RESPONSE_TIMEOUT without a word; streams must not be subject to it."""

    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        slow(server)
        server.app.config["RESPONSE_TIMEOUT"] = 0.5
        answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert frames(answer.content)[-1] == "[DONE]"

    drive(tmp_path, scenario)


def test_streams_are_neither_cached_nor_buffered(tmp_path: Path) -> None:
    async def scenario(server: Running, client: httpx2.AsyncClient) -> None:
        slow(server)
        async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
            assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-accel-buffering"] == "no"
            assert "content-length" not in answer.headers
            chunks = answer.aiter_raw()
            first = await anext(chunks)
            assert server.api.engine.running  # it arrived while the rest was still to come
            assert b'"role":"assistant"' in first

    drive(tmp_path, scenario)
