"""What every request gets, whatever its route: ids, cancelling, pages of other origins, counters, comments."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive

from motet.api.http.api_keys import key_line
from motet.api.http.sse_keep_alive import COMMENT, with_keep_alive
from motet.core.settings import Settings


@pytest.mark.parametrize("sent", ["a-1.b_2", "", "with space", "x" * 129, "a\tb"])
def test_a_request_has_an_id(tmp_path: Path, sent: str) -> None:
    async def scenario(caller: Caller) -> None:
        response = await caller.post(CHAT, {"messages": MESSAGES}, **{"x-request-id": sent})
        got = response.headers["x-request-id"]
        assert got == sent if sent == "a-1.b_2" else re.fullmatch(r"req_[0-9a-f]{32}", got)

    drive(tmp_path, scenario)


async def begun(caller: Caller, **headers: str) -> asyncio.Task[Any]:
    """A request that will run for long, as it runs."""
    caller.api.engine.step_seconds = 0.01
    caller.api.engine.script = lambda _: "x" * 900
    known = len(caller.api.engine.submits)
    task = asyncio.create_task(caller.post(COMPLETIONS, {"prompt": "hi", "max_tokens": 900}, **headers))
    while len(caller.api.engine.submits) == known:
        await asyncio.sleep(0.005)
    return task


def test_a_request_can_be_ended_by_its_id_or_its_answers(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        running = await begun(caller, **{"x-request-id": "mine"})
        answer = caller.api.engine.submits[-1].id.rpartition("-")[0]
        for name in ("mine", answer):
            response = await caller.client.post(f"/v1/requests/{name}/cancel")
            assert await response.get_json() == {"id": name, "object": "request.cancelled", "sequences": 1}
        unknown = await caller.client.post("/v1/requests/theirs/cancel")
        assert unknown.status_code == 404
        running.cancel()

    drive(tmp_path, scenario)


def test_only_an_admin_ends_what_is_anothers(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(key_line(name, f"sk-{name}", name == "boss") for name in ("alice", "bob", "boss")))

    async def scenario(caller: Caller) -> None:
        async def cancel(name: str, key: str) -> int:
            headers = {"authorization": f"Bearer sk-{key}"}
            return int((await caller.client.post(f"/v1/requests/{name}/cancel", headers=headers)).status_code)

        running = await begun(caller, **{"x-request-id": "hers", "authorization": "Bearer sk-alice"})
        assert [await cancel("hers", key) for key in ("bob", "boss", "alice")] == [404, 404, 200]
        assert [await cancel("alice:hers", key) for key in ("bob", "boss", "alice")] == [404, 200, 200]
        running.cancel()

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


@pytest.mark.parametrize("name", ["cmpl-svc", "chatcmpl-svc", "resp_svc", "embd-svc", "msg_svc"])
def test_a_key_whose_name_is_like_an_answers_id_is_no_way_to_its_requests(tmp_path: Path, name: str) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(key_line(key, f"sk-{key}", False) for key in (name, "bob")))

    async def scenario(caller: Caller) -> None:
        async def cancel(key: str) -> int:
            headers = {"authorization": f"Bearer sk-{key}"}
            response = await caller.client.post(f"/v1/requests/{name}:nightly/cancel", headers=headers)
            return int(response.status_code)

        running = await begun(caller, **{"x-request-id": "nightly", "authorization": f"Bearer sk-{name}"})
        assert (await cancel("bob"), await cancel(name)) == (404, 200)
        running.cancel()

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}


def test_pages_of_named_origins_alone_may_call(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            asked = await caller.client.options(CHAT, headers={"origin": origin, **PREFLIGHT})
            answered = await caller.post(CHAT, {"messages": MESSAGES}, origin=origin)
            refused = await caller.post(CHAT, {}, origin=origin)
            expected = origin if allowed else None
            for response in (asked, answered, refused):
                assert response.headers.get("access-control-allow-origin") == expected
            assert ("authorization" in asked.headers.get("access-control-allow-headers", "").lower()) is allowed
            assert ("x-request-id" in answered.headers.get("access-control-expose-headers", "")) is allowed

    drive(tmp_path, scenario, settings=Settings(cors_origin=("https://app.example",)))


@pytest.mark.parametrize(
    ("entry", "allowed", "refused"),
    [
        (
            "http://localhost:*",
            ["http://localhost:3000", "http://localhost"],
            [
                "https://localhost:3000",
                "http://localhost.evil.example:80",
                "http://xlocalhost:1",
                "http://localhost:1x",
            ],
        ),
        (
            "https://*.app.example",
            ["https://a.app.example", "https://a.b.app.example"],
            [
                "https://app.example",
                "https://app.example.evil",
                "https://evilapp.example",
                "https://a.app.example:8443",
            ],
        ),
        ("chrome-extension://*", ["chrome-extension://abc"], ["https://abc", "chrome-extension://abc/x"]),
    ],
)
def test_pages_of_origins_with_wildcards_may_call(
    tmp_path: Path, entry: str, allowed: list[str], refused: list[str]
) -> None:
    async def scenario(caller: Caller) -> None:
        for origin in (*allowed, *refused):
            asked = await caller.client.options(CHAT, headers={"origin": origin, **PREFLIGHT})
            answered = await caller.post(CHAT, {"messages": MESSAGES}, origin=origin)
            expected = origin if origin in allowed else None
            assert asked.headers.get("access-control-allow-origin") == expected, origin
            assert answered.headers.get("access-control-allow-origin") == expected, origin
            assert answered.status_code == (200 if origin in allowed else 403), origin
        rebound = await caller.post(CHAT, {"messages": MESSAGES}, host="evil.example")
        assert rebound.status_code == 403  # `*` in an origin is no `*` for the server's own names

    drive(tmp_path, scenario, settings=Settings(cors_origin=(entry,)))


def test_by_default_no_page_of_another_origin_may(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        asked = await caller.client.options(CHAT, headers={"origin": "https://app.example", **PREFLIGHT})
        assert "access-control-allow-origin" not in asked.headers

    drive(tmp_path, scenario)


def test_metrics_count_by_route_and_carry_the_engines_gauges(tmp_path: Path) -> None:
    async def samples(caller: Caller) -> dict[tuple[str, ...], float]:
        response = await caller.client.get("/metrics")
        assert response.content_type.startswith("text/plain")
        text = (await response.get_data()).decode()
        families = text_string_to_metric_families(text)
        return {(s.name, *sorted(s.labels.values())): s.value for family in families for s in family.samples}

    async def scenario(caller: Caller) -> None:
        before = await samples(caller)
        await caller.answer(CHAT, {"messages": MESSAGES})
        await caller.post(CHAT, {})
        await caller.client.get("/made/up/1")
        await caller.client.get("/made/up/2")
        after = await samples(caller)

        def grown(*key: str) -> float:
            return after.get(key, 0) - before.get(key, 0)

        assert grown("motet_requests_total", *sorted(("POST", CHAT, "200"))) == 1
        assert grown("motet_requests_total", *sorted(("POST", CHAT, "400"))) == 1
        assert grown("motet_requests_total", *sorted(("GET", "other", "404"))) == 2
        assert after[("motet_requests_running",)] == 1  # the one that asks
        assert (after[("motet_engine_up",)], after[("motet_cache_blocks",)]) == (1, 9)
        assert after[("motet_steps_total",)] == 0
        assert not any("made" in part for key in after for part in key)
        caller.api.engine.ready = False
        down = await samples(caller)
        assert down[("motet_engine_up",)] == 0
        assert ("motet_cache_blocks",) not in down

    drive(tmp_path, scenario)


async def stream_of(pauses: list[float], seconds: float, kind: bytes = b"text/event-stream") -> list[bytes]:
    """The bodies that a client gets from an app which sends a frame after each pause."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        for pause in pauses:
            await asyncio.sleep(pause)
            await send({"type": "http.response.body", "body": b"frame", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    sent: list[bytes] = []
    busy = False

    async def send(message: Any) -> None:
        nonlocal busy
        assert not busy, "two at once"
        busy = True
        await asyncio.sleep(0.001)
        busy = False
        sent.append(message.get("body", b"start"))

    await with_keep_alive(app, seconds)({"type": "http"}, None, send)  # type: ignore[arg-type, typeddict-item]
    await asyncio.sleep(2 * seconds)
    return sent


def test_a_silent_stream_says_that_it_lives() -> None:
    sent = asyncio.run(stream_of([0.0, 0.5, 0.01, 0.01], 0.1))
    assert sent[:2] == [b"start", b"frame"]
    assert 3 <= sent.count(COMMENT) <= 5
    assert [body for body in sent if body != COMMENT] == [b"start", *[b"frame"] * 4, b""]
    assert sent[-3:] == [b"frame", b"frame", b""]


def test_nothing_else_gets_comments() -> None:
    assert COMMENT not in asyncio.run(stream_of([0.3], 0.05, b"application/json"))


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"origin": "https://evil.example"}, 403),
        ("POST", {"origin": "null"}, 403),
        ("POST", {"origin": "http://localhost:3000", "host": "localhost:8080"}, 403),
        ("POST", {"origin": "https://app.example"}, 200),
        ("POST", {"origin": "http://localhost:8080", "host": "localhost:8080"}, 200),
        ("POST", {"host": "evil.example"}, 403),
        ("POST", {"origin": "http://evil.example", "host": "evil.example"}, 403),
        ("GET", {"host": "evil.example:8080"}, 403),
        ("GET", {"host": "localhost.evil.example"}, 403),
        ("GET", {"host": "127.0.0.1.evil.example"}, 403),
        ("GET", {"host": "app.example"}, 200),
        ("GET", {"host": "Motet:8080"}, 200),
        ("GET", {"host": "127.0.0.1:8080"}, 200),
        ("GET", {"host": "192.168.1.20:8080"}, 200),
        ("GET", {"host": "[::1]:8080"}, 200),
        ("GET", {"host": "LOCALHOST"}, 200),
        ("GET", {"host": "localhost.:8080"}, 200),
        ("GET", {"host": "model.localhost"}, 200),
        ("GET", {"host": socket.gethostname()}, 200),
        ("GET", {"origin": "https://evil.example"}, 200),  # the browser keeps the answer from the page
    ],
)
def test_without_keys_pages_of_other_sites_are_kept_out(
    tmp_path: Path, bound: str, method: str, headers: dict[str, str], status: int
) -> None:
    async def scenario(caller: Caller) -> None:
        path = "/v1/models" if method == "GET" else CHAT
        body = None if method == "GET" else {"model": "", "messages": MESSAGES}
        response = await caller.client.open(path, method=method, json=body, headers=headers)
        assert response.status_code == status
        if status == 403:
            message = (await response.get_json())["error"]["message"]
            assert "--allowed-host" in message or "--cors-origin" in message

    settings = Settings(host=bound, cors_origin=("https://app.example",), allowed_host=("motet",))
    drive(tmp_path, scenario, settings=settings)


def test_probes_come_by_any_name(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for path in ("/", "/health", "/ping", "/startup"):
            response = await caller.client.get(path, headers={"host": "balancer.example"})
            assert response.status_code == 200
        assert (await caller.client.post("/", headers={"host": "balancer.example"})).status_code == 403

    drive(tmp_path, scenario)


@pytest.mark.parametrize("keys", [True, False])
def test_a_server_may_answer_to_any_name(tmp_path: Path, keys: bool) -> None:
    file = tmp_path / "keys"
    file.write_text(key_line("alice", "sk-alice", False))
    settings = Settings(api_keys=str(file)) if keys else Settings(allowed_host=("*",))

    async def scenario(caller: Caller) -> None:
        headers = {"host": "models.example", "authorization": "Bearer sk-alice"}
        assert (await caller.client.get("/v1/models", headers=headers)).status_code == 200

    drive(tmp_path / "api", scenario, settings=settings)


ASK_TWICE = """
import asyncio, sys
from pathlib import Path
from support.api_caller import Caller, drive

async def scenario(caller: Caller) -> None:
    for _ in range(2):
        text = await (await caller.client.get("/metrics")).get_data()
    sys.stdout.buffer.write(text)

drive(Path(sys.argv[1]), scenario)
"""


def test_the_engines_metrics_are_there_once_however_many_api_processes_ask(tmp_path: Path) -> None:
    (tmp_path / "counters").mkdir()
    (tmp_path / "api").mkdir()
    paths = os.pathsep.join((str(Path(__file__).parents[2]), *sys.path))
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "counters"), "PYTHONPATH": paths}
    command = [sys.executable, "-c", ASK_TWICE, str(tmp_path / "api")]
    text = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    assert [s.labels for s in samples if s.name == "motet_engine_up"] == [{}]
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 10


def test_nobody_makes_up_series(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for n in range(20):
            await caller.client.open(f"/x{n}", method=f"M{n}")
        text = (await (await caller.client.get("/metrics")).get_data()).decode()
        assert 'method="M' not in text

    drive(tmp_path, scenario)


def test_what_is_nested_too_deeply_is_the_callers_mistake(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": "DEEP"}}
        body = json.dumps({"model": "", "messages": MESSAGES, "tools": [tool]})
        body = body.replace('"DEEP"', '{"x": ' * 975 + "{}" + "}" * 975)
        response = await caller.client.post(CHAT, data=body, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert (await response.get_json())["error"]["code"] == "invalid_json"

    drive(tmp_path, scenario)
