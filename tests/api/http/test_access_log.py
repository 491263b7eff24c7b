"""One access log line per request, at its end: usage and outcome, never the text."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from prometheus_client import REGISTRY
from support import batch_calls
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive
from support.batch_calls import finished, jsonl, line, upload
from support.log_lines import log_lines
from support.scripted_server import Running, scripted_server

from motet.api.http.api_keys import key_line
from motet.core.errors import Conflict, MotetError
from motet.core.settings import Settings

PROMPT = "a secret question"
ANSWER = "a secret answer"
SAID = [{"role": "user", "content": PROMPT}]


def requests(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["message"] == "request"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_one_line_with_its_adapter_tokens_times_and_end(tmp_path: Path, stream: bool) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-very-secret", False))

    async def scenario(caller: Caller) -> None:
        caller.api.engine.script = lambda request: ANSWER
        headers = {"authorization": "Bearer sk-very-secret", "x-request-id": "mine", "x-adapter-token": "hf_secret"}
        body = {"model": "shelf:one", "messages": SAID, "stream": stream}
        with log_lines("DEBUG") as lines:
            response = await caller.client.post(CHAT, json=body, headers=headers)
            await response.get_data()
        (written,) = requests(lines)
        del written["time"], written["process"]
        times = [written.pop(name) for name in ("queue_seconds", "first_token_seconds", "duration_seconds")]
        assert 0 <= times[0] <= times[1] <= times[2]
        assert written == {
            "level": "info",
            "message": "request",
            "request_id": "mine",
            "key": "alice",
            "method": "POST",
            "route": CHAT,
            "adapter": "shelf:one@print-of-one",
            "prompt_tokens": len(caller.api.engine.submits[-1].prompt),
            "cached_tokens": 0,
            "completion_tokens": len(ANSWER) + 1,
            "stream": stream,
            "status": 200,
            "ended": "stop",
        }
        for secret in (PROMPT, ANSWER, "sk-very-secret", "hf_secret"):
            assert secret not in json.dumps(lines)

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


def test_how_a_request_ended_is_said(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        engine = caller.api.engine

        async def ended(path: str, body: dict[str, Any], failure: MotetError | None = None) -> tuple[int, str]:
            engine.fail_after, engine.failure = (None if failure is None else 2), failure or engine.failure
            with log_lines() as lines:
                await (await caller.post(path, body)).get_data()
            (written,) = requests(lines)
            return written["status"], written["ended"]

        cut = {"messages": MESSAGES, "max_tokens": 2}
        stream = {"messages": MESSAGES, "stream": True}
        cancelled = Conflict("the request was cancelled", code="request_cancelled")
        assert await ended(CHAT, cut) == (200, "length")
        assert await ended(CHAT, {"messages": MESSAGES, "top_p": 7}) == (400, "invalid_value")
        assert await ended(CHAT, {**stream, "model": "shelf:nobody"}) == (404, "model_not_found")
        assert await ended(CHAT, {**stream, "model": "shelf:broken"}) == (422, "adapter_refused")
        assert await ended(CHAT, stream, cancelled) == (200, "cancelled")
        assert await ended(COMPLETIONS, {"prompt": "x"}, cancelled) == (409, "cancelled")
        assert await ended(CHAT, stream, MotetError("scripted")) == (200, "internal_error")
        assert await ended("/generate", {"inputs": "x", "parameters": {"top_p": 7}}) == (422, "invalid_value")
        assert await ended("/v1/embeddings", {"input": "x"}) == (200, "done")
        assert await ended("/nowhere", {}) == (404, "not_found")

    drive(tmp_path, scenario)


def test_a_client_that_leaves_is_said_to_be_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with scripted_server(tmp_path) as server, httpx2.AsyncClient(base_url=server.url) as client:
            server.api.engine.script, server.api.engine.step_seconds = (lambda request: "x" * 500), 0.05
            with log_lines() as lines:
                body = {"model": "", "messages": MESSAGES, "stream": True}
                async with client.stream("POST", CHAT, json=body) as answer:
                    await anext(answer.aiter_raw())
                whole = asyncio.create_task(client.post(CHAT, json={"model": "", "messages": MESSAGES}))
                async with asyncio.timeout(20):
                    while len(server.api.engine.submits) < 2:
                        await asyncio.sleep(0.01)
                    whole.cancel()
                    while len(requests(lines)) < 2:
                        await asyncio.sleep(0.01)
                    done = await client.post(CHAT, json={"model": "", "messages": MESSAGES, "max_tokens": 1})
                    assert done.status_code == 200
                    while len(requests(lines)) < 3:
                        await asyncio.sleep(0.01)
        first, second, third = requests(lines)
        assert (first["status"], first["ended"], first["stream"]) == (200, "client_gone", True)
        assert first["completion_tokens"] >= 1
        assert ("status" not in second, second["ended"]) == (True, "client_gone")
        assert third["ended"] == "length"

    asyncio.run(scenario())


def test_refusals_are_debug_lines_and_faults_are_errors(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        with log_lines("DEBUG") as lines:
            await caller.post(CHAT, {"messages": SAID, "top_p": 7}, **{"x-request-id": "bad"})
            caller.api.engine.ready, caller.api.engine.reason = False, "the engine is starting"
            await caller.post(CHAT, {"messages": SAID}, **{"x-request-id": "early"})
        failures = [line for line in lines if line["message"].startswith("request ")]
        assert [(f["level"], f["request_id"], f["status"], f["code"], f.get("param")) for f in failures] == [
            ("debug", "bad", 400, "invalid_value", "top_p"),
            ("error", "early", 503, "engine_unavailable", None),
        ]
        assert failures[1]["message"] == "request failed: the engine is starting"
        assert PROMPT not in json.dumps(lines)

    drive(tmp_path, scenario)


def test_probes_are_quiet_and_the_access_log_can_be_switched_off(tmp_path: Path) -> None:
    async def probed(caller: Caller) -> None:
        with log_lines() as lines:
            for path in ("/health", "/live", "/ready", "/metrics", "/v1/models"):
                await caller.client.get(path)
            caller.api.engine.ready = False
            await caller.client.get("/ready")
        assert [line["route"] for line in requests(lines)] == ["/v1/models"]

    async def silent(caller: Caller) -> None:
        with log_lines("DEBUG") as lines:
            await caller.answer(CHAT, {"messages": MESSAGES})
        assert requests(lines) == []

    drive(tmp_path / "on", probed)
    drive(tmp_path / "off", silent, settings=Settings(access_log="off"))


def test_each_line_of_a_batch_has_a_line_and_counts_without_its_latency(tmp_path: Path) -> None:
    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        answered = counted("motet_adapter_requests_total", adapter="shelf:one", outcome="stop")
        timed = counted("motet_time_to_first_token_seconds_count", stream="false")
        with log_lines() as lines:
            work = jsonl(line("good", PROMPT, model="shelf:one"), line("bad", PROMPT, top_p=7))
            file = await upload(client, work)
            made = await client.batches.create(
                input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert (await finished(client, made.id)).request_counts.failed == 1
        own = {entry["request_id"]: entry for entry in requests(lines) if entry["method"] == "BATCH"}
        good, bad = own[f"{made.id}-1"], own[f"{made.id}-2"]
        assert (good["status"], good["ended"], good["adapter"]) == (200, "stop", "shelf:one@print-of-one")
        assert (bad["status"], bad["ended"]) == (400, "invalid_value")
        assert counted("motet_adapter_requests_total", adapter="shelf:one", outcome="stop") == answered + 1
        assert counted("motet_time_to_first_token_seconds_count", stream="false") == timed
        assert PROMPT not in json.dumps(lines)

    batch_calls.drive(tmp_path, scenario)


def test_a_response_in_the_background_has_a_line_of_its_own(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        with log_lines() as lines:
            made = await caller.answer("/v1/responses", {"input": PROMPT, "background": True, "model": "shelf:one"})
            async with asyncio.timeout(20):
                while len(requests(lines)) < 2:
                    await asyncio.sleep(0.02)
        asked, background = requests(lines)
        assert (asked["method"], asked["status"], asked["ended"]) == ("POST", 200, "done")
        assert "completion_tokens" not in asked
        assert (background["method"], background["ended"]) == ("BACKGROUND", "stop")
        assert background["completion_tokens"] == len("Hello!") + 1
        assert background["request_id"] == asked["request_id"]
        assert made["status"] == "queued"

    drive(tmp_path, scenario)
