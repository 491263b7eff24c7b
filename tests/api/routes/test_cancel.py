"""POST /v1/requests/{id}/cancel, and the ids by which it finds requests."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from support.api_caller import CHAT, COMPLETIONS, MESSAGES, Caller, drive

from motet.api.http.api_keys import key_line
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
