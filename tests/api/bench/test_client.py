"""The client of `motet bench` against a scripted HTTP server: complete, cut, malformed and refused streams."""

from __future__ import annotations

import asyncio

import pytest
from support.scripted_http import DONE, USAGE, Reply, TinyServer, event, serving, text

from motet.api.bench.client import Outcome, Target, drive, first_model
from motet.api.bench.command import measure
from motet.api.bench.report import Report
from motet.api.bench.workload import Workload
from motet.core.errors import StartupError


def outcomes_of(reply: Reply, workload: Workload, target: Target | None = None) -> tuple[list[Outcome], TinyServer]:
    async def run() -> tuple[list[Outcome], TinyServer]:
        async with serving(lambda _: reply) as server:
            return await drive(Target(server.url) if target is None else target, workload), server

    return asyncio.run(run())


def outcome_of(*pieces: bytes, chunked: bool = True, whole: bool = True) -> Outcome:
    (outcome,), _ = outcomes_of(Reply(pieces, chunked=chunked, whole=whole), Workload("m", requests=1))
    return outcome


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_stream_is_read_wherever_it_is_cut(size: int, end: bytes) -> None:
    stream = (b": hello\n\n" + text("é") + text("two") + text("") + USAGE + DONE).replace(b"\n", end)
    outcome = outcome_of(*(stream[i : i + size] for i in range(0, len(stream), size)))
    assert outcome.error == ""
    assert (outcome.prompt_tokens, outcome.output_tokens, len(outcome.arrivals)) == (5, 9, 2)
    assert outcome.start < outcome.arrivals[0] <= outcome.arrivals[1] <= outcome.end


def test_without_usage_events_with_text_are_counted() -> None:
    outcome = outcome_of(text("a"), text("b") + text("c"), text(""), DONE)
    assert (outcome.prompt_tokens, outcome.output_tokens) == (0, 3)


def test_a_chat_starts_with_its_first_text_and_not_with_its_role() -> None:
    def delta(**delta: str | None) -> bytes:
        return event(choices=[{"index": 0, "delta": delta}])

    pieces = (delta(role="assistant", content=""), delta(reasoning_content="hm"), delta(content="a"), delta(), DONE)
    (outcome,), server = outcomes_of(Reply(pieces), Workload("m", requests=1, chat=True))
    assert (outcome.error, outcome.output_tokens) == ("", 2)
    assert server.heads[0].startswith("post /v1/chat/completions ")
    assert [message["role"] for message in server.bodies[0]["messages"]] == ["user"]


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([text("a"), event(error={"message": "the engine\n stopped", "code": "x"})], "the engine stopped"),
        ([text("a"), event(error="out of order"), DONE], "out of order"),
        ([text("a"), text("b")], "the stream ended before [DONE]"),
        ([text("a"), b"data: {oops\n\n", DONE], "DecodeError"),
    ],
)
def test_a_stream_that_fails_counts_for_nothing(pieces: list[bytes], message: str) -> None:
    outcome = outcome_of(*pieces)
    assert message in outcome.error
    assert (outcome.arrivals, outcome.output_tokens) == ((), 0)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_connection_that_breaks_is_an_error(chunked: bool) -> None:
    assert outcome_of(text("a"), chunked=chunked, whole=False).error != ""


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, b'{"error": {"message": "no such model", "type": "x"}}', "HTTP 404: no such model"),
        (422, b'{"detail": "field"}', 'HTTP 422: {"detail": "field"}'),
        (502, b"<h1>Bad\ngateway</h1>" + b"x" * 300_000, "HTTP 502: <h1>Bad gateway</h1>xxx"),
        (503, b"", "HTTP 503: no reason given"),
    ],
)
def test_a_refusal_is_reported_in_a_short_line(status: int, body: bytes, message: str) -> None:
    reply = Reply([body] if body else [], status=status, content_type="text/plain")
    (outcome,), _ = outcomes_of(reply, Workload("m", requests=1))
    assert outcome.error.startswith(message)
    assert "\n" not in outcome.error
    assert len(outcome.error) < 250


def test_concurrency_is_kept_and_connections_are_used_again() -> None:
    workload = Workload(
        "base", ("a", "b"), "distinct", requests=30, prompt_tokens=3, output_tokens=11, prompt_form="ids"
    )

    async def run() -> tuple[Report, TinyServer]:
        async with serving(lambda _: Reply([text("a"), USAGE, DONE], seconds=0.005)) as server:
            return await measure(Target(server.url + "/v1/", concurrency=5, api_key="sk-secret"), workload), server

    report, server = asyncio.run(run())
    assert (report.completed, report.output_tokens, report.errors) == (30, 270, {})
    assert (server.most, server.connections) == (5, 5)
    assert all("authorization: bearer sk-secret" in head for head in server.heads)
    assert sorted(server.bodies, key=str) == sorted((workload.body(i) for i in range(30)), key=str)
    assert server.bodies[0] | {"prompt": [], "model": ""} == {
        "prompt": [],
        "model": "",
        "max_tokens": 11,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_time_limit_ends_everything() -> None:
    async def run() -> tuple[Report, float]:
        async with serving(lambda _: Reply([text("a")] * 1000, seconds=0.05)) as server:
            clock = asyncio.get_running_loop().time
            started = clock()
            report = await measure(Target(server.url, concurrency=2, timeout=0.3), Workload("m", requests=9))
            return report, clock() - started

    report, seconds = asyncio.run(run())
    assert seconds < 5
    assert report.errors == {"not finished within --timeout": 2}
    assert report.completed == 0


def test_the_key_is_not_shown() -> None:
    assert "sk-secret" not in repr(Target(api_key="sk-secret"))


@pytest.mark.parametrize(
    ("status", "body", "model"),
    [
        (200, b'{"object": "list", "data": [{"id": "base", "object": "model"}, {"id": "x"}]}', "base"),
        (200, b'{"data": []}', ""),
        (404, b"not here", ""),
    ],
)
def test_the_base_model_is_the_first_that_is_listed(status: int, body: bytes, model: str) -> None:
    async def run() -> str:
        async with serving(lambda _: Reply([body], status=status)) as server:
            return await first_model(Target(server.url))

    assert asyncio.run(run()) == model


def test_a_wrong_key_is_reported() -> None:
    async def run() -> None:
        async with serving(lambda _: Reply([b"{}"], status=401)) as server:
            await first_model(Target(server.url))

    with pytest.raises(StartupError, match="--api-key"):
        asyncio.run(run())
