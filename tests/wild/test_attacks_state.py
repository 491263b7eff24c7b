"""Attacks on stored state, and mishaps: tenants, secrets, files, clocks and processes."""

from __future__ import annotations

import ast
import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from support.api_caller import CHAT, MESSAGES, Caller, drive
from support.responses_calls import RESPONSES

from motet.api.http import api_keys
from motet.api.http.api_keys import key_line
from motet.api.storage.database import Database
from motet.api.storage.files import FileStore, new_file
from motet.api.storage.upload_reservations import UploadReservations
from motet.core.errors import PayloadTooLarge
from motet.core.heartbeat import SERVING, Heartbeat, HeartbeatMonitor
from motet.core.run_directory import RunDirectory, remove_leftovers
from motet.core.settings import Settings

TESTS = Path(__file__).parents[1]
TOKEN = "hf_planted_secret"


def keyed(root: Path, *names: str) -> Settings:
    """Settings with an API key `sk-NAME` for each name; `boss` is an admin key."""
    file = root / "keys"
    file.write_text("\n".join(key_line(name, f"sk-{name}", name == "boss") for name in names))
    return Settings(api_keys=str(file))


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


async def content(size: int) -> AsyncIterator[bytes]:
    yield b"x" * size


@pytest.fixture
def umask() -> Iterator[None]:
    """Set a umask with which other users may read new files."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_8_a_suspended_machine_and_a_clock_step_end_no_process(tmp_path: Path) -> None:
    now = [1000.0]
    child = Heartbeat(str(tmp_path / "heartbeat"))
    monitor = HeartbeatMonitor(tmp_path / "heartbeat", 60.0, lambda: now[0])
    child.enter(SERVING)
    monitor.poll()
    now[0] += 65  # the machine was suspended
    monitor.poll()
    assert not monitor.hung
    for when in (time.time() - 120, time.time() + 60):  # as `touch -d '2 minutes ago'`
        os.utime(monitor.path, (when, when))
        monitor.poll()
        assert not monitor.hung
    for _ in range(1300):  # the child does not respond
        now[0] += 0.05
        monitor.poll()
    assert monitor.hung


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("existing", [False, True])
def test_10_others_cannot_read_what_is_stored(tmp_path: Path, existing: bool) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    names = ("motet.db", "motet.db-wal", "motet.db-shm")
    for name in names if existing else ():
        (directory / name).touch(0o644)

    async def main() -> None:
        database = Database(directory)
        await FileStore(database).put("", new_file("a", "batch", None), content(9))
        assert [(directory / name).stat().st_mode & 0o777 for name in names] == [0o600] * 3
        assert (directory / "files").stat().st_mode & 0o777 == 0o700
        await database.close()

    asyncio.run(main())


def test_12_one_key_leaves_room_for_others(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(tmp_path, 5 << 20)
        uploads, files = UploadReservations(database), FileStore(database)

        async def upload(owner: str, size: int) -> None:
            async with uploads.reserved(owner, size):
                await files.put(owner, new_file("a", "batch", None), content(size))

        await upload("alice", 2 << 20)
        with pytest.raises(PayloadTooLarge) as full:
            await upload("alice", 1 << 20)
        assert full.value.code == "storage_full"
        await upload("bob", 1 << 20)
        await database.close()

    asyncio.run(main())


def test_low_a_full_data_disk_is_named(tmp_path: Path) -> None:
    """SQLite cannot grow its file, as on a full disk: the computed answer is still sent."""

    async def scenario(caller: Caller) -> None:
        kept = await caller.answer(RESPONSES, {"input": "hi"})
        database = caller.api.services.database

        def limit(connection: sqlite3.Connection) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")

        await database.run(limit)
        answers = [await caller.answer(RESPONSES, {"input": "x" * 1500}) for _ in range(20)]
        assert answers[-1]["store"] is False
        assert answers[-1]["output"][0]["content"][0]["text"] == "Hello!"
        refused = await caller.error(RESPONSES, {"input": "x" * 1500, "background": True})
        assert refused[:2] == (503, "storage_full")
        assert (await caller.client.delete(f"{RESPONSES}/{kept['id']}")).status_code == 200

    drive(tmp_path, scenario)


async def uploaded(caller: Caller, purpose: str, file: bytes) -> Any:
    """The answer to an upload that has a Content-Length, as clients send it."""
    field = 'Content-Disposition: form-data; name="{}"'
    body = f"--b\r\n{field.format('purpose')}\r\n\r\n{purpose}\r\n--b\r\n{field.format('file')}; filename=a\r\n\r\n"
    content = body.encode() + file + b"\r\n--b--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=b", "content-length": str(len(content))}
    return await caller.client.post("/v1/files", data=content, headers=headers)


def test_low_a_token_in_a_batch_s_file_is_refused(tmp_path: Path) -> None:
    line = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "", "api_token": "%s"}}'

    async def scenario(caller: Caller) -> None:
        response = await uploaded(caller, "batch", (line % TOKEN).encode())
        body = (await response.get_data()).decode()
        assert (response.status_code, '"token_in_file"' in body, TOKEN in body) == (400, True, False)
        assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file() and holds(path, TOKEN)]

    drive(tmp_path, scenario)


def test_low_uploads_are_written_to_the_data_directory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(caller: Caller) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        response = await uploaded(caller, "user_data", b"x" * 900_000)
        monkeypatch.undo()
        assert response.status_code == 200, await response.get_data()
        assert (await response.get_json())["bytes"] == 900_000

    drive(tmp_path, scenario)


def holds(path: Path, text: str) -> bool:
    return text.encode() in path.read_bytes()


@pytest.mark.usefixtures("temporary")
def test_low_the_leftovers_of_a_killed_supervisor() -> None:
    program = (
        "import sys; from motet.core.run_directory import RunDirectory; d = RunDirectory(); print(d.path, flush=True)"
    )
    command = [sys.executable, "-c", f"{program}; sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        theirs = Path(server.stdout.readline().strip())
        remove_leftovers()
        assert theirs.is_dir()
        server.kill()
        server.wait()
    ours = RunDirectory()
    remove_leftovers()
    assert (theirs.exists(), ours.path.is_dir()) == (False, True)
    ours.remove()


def test_withstood_secrets_are_nowhere(tmp_path: Path) -> None:
    lines: list[str] = []

    async def scenario(caller: Caller) -> None:
        seen: list[str] = []
        for model in ("shelf:secret", "shelf:one", "shelf:broken", "shelf:absent", ""):
            for path, body in (
                (CHAT, {"messages": MESSAGES}),
                (RESPONSES, {"input": "hi"}),
                ("/tokenize", {"prompt": "x"}),
            ):
                for sent in ({"api_token": TOKEN}, {}):
                    response = await caller.post(path, {"model": model, **body, **sent}, **{"x-adapter-token": TOKEN})
                    seen += [(await response.get_data()).decode(), str(response.headers)]
        for path in ("/metrics", "/health", "/v1/models", "/openapi.json"):
            seen.append((await (await caller.client.get(path)).get_data()).decode())
        assert TOKEN in caller.api.shelf.tokens
        assert not any(TOKEN in text for text in seen)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and holds(path, TOKEN)]

    sink = logger.add(lines.append, level="TRACE", serialize=True)
    try:
        drive(tmp_path, scenario)
    finally:
        logger.remove(sink)
    assert lines
    assert not any(TOKEN in line for line in lines)


def test_withstood_tenants_are_apart(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        made = await caller.answer(RESPONSES, {"input": "hi"}, **key("alice"))
        id, item = made["id"], made["output"][0]["id"]
        for name in ("bob", "boss"):
            for method, path in (
                ("GET", f"{RESPONSES}/{id}"),
                ("GET", f"{RESPONSES}/{id}/input_items"),
                ("GET", f"{RESPONSES}/{id}?stream=true"),
                ("POST", f"{RESPONSES}/{id}/cancel"),
                ("DELETE", f"{RESPONSES}/{id}"),
                ("GET", f"/v1/files/{id}"),
                ("GET", f"/v1/batches/{id}"),
                ("GET", f"{RESPONSES}/../responses/{id}"),
            ):
                response = await caller.client.open(path, method=method, headers=key(name))
                assert response.status_code == 404, (name, method, path)
            for body in ({"previous_response_id": id}, {"input": [{"type": "item_reference", "id": item}]}):
                status, *_ = await caller.error(RESPONSES, {"input": "hi", **body}, **key(name))
                assert status == 404
            for path in ("/v1/files", "/v1/batches"):
                listed = await (await caller.client.get(path, headers=key(name))).get_json()
                assert listed["data"] == []
        assert (await caller.client.get(f"{RESPONSES}/{id}", headers=key("alice"))).status_code == 200

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "alice", "bob", "boss"))


def test_withstood_a_private_adapter_stays_private(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        ordinary = {"messages": MESSAGES}
        alice = {**key("alice"), "x-adapter-token": "hf_good"}
        await caller.answer(CHAT, {"model": "shelf:secret", **ordinary}, **alice)
        merged = {"ids": ["shelf:one", "shelf:secret"], "weights": [1, 1]}
        forms: list[tuple[str, dict[str, Any]]] = [
            (CHAT, {"model": "shelf:secret", **ordinary}),
            (CHAT, {"model": "shelf:secret@r1", **ordinary}),
            (CHAT, {"model": "secret", "adapter_source": "shelf", **ordinary}),
            (CHAT, {"model": "shelf:../shelf/secret", **ordinary}),
            (CHAT, {"model": "", "merged_adapters": merged, **ordinary}),
            ("/v1/completions", {"model": "shelf:secret", "prompt": "x"}),
            ("/v1/embeddings", {"model": "shelf:secret", "input": "x"}),
            ("/tokenize", {"model": "shelf:secret", "prompt": "x"}),
            (RESPONSES, {"model": "shelf:secret", "input": "x"}),
            ("/v1/messages", {"model": "shelf:secret", "max_tokens": 1, **ordinary}),
            ("/api/chat", {"model": "shelf:secret", **ordinary}),
            ("/generate", {"inputs": "x", "parameters": {"adapter_id": "secret", "adapter_source": "shelf"}}),
        ]
        before = len(caller.api.engine.submits)
        for token in ({}, {"x-adapter-token": "hf_other"}):
            for path, body in forms:
                response = await caller.post(path, body, **key("bob"), **token)
                assert response.status_code in (401, 403, 404, 424), (path, body)
        assert len(caller.api.engine.submits) == before

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "alice", "bob"))


def test_withstood_the_file_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    settings = keyed(tmp_path, "alice")
    file = tmp_path / "keys"

    async def scenario(caller: Caller) -> None:
        async def statuses() -> list[int]:
            found = [await caller.client.get("/v1/models", headers=key(name)) for name in ("alice", "carol")]
            return [response.status_code for response in found]

        assert await statuses() == [200, 401]
        for number, (text, expected) in enumerate(
            (
                (key_line("alice", "sk-alice", False) + "\n" + key_line("carol", "sk-carol", False), [200, 200]),
                (key_line("carol", "sk-carol", False), [401, 200]),
                ("", [401, 200]),
                ("garbage \udc80", [401, 200]),
            )
        ):
            file.write_bytes(text.encode(errors="surrogateescape"))
            os.utime(file, (time.time() + number + 5,) * 2)
            assert await statuses() == expected
        file.unlink()
        assert await statuses() == [401, 200]

    drive(tmp_path / "api", scenario, settings=settings)


PATHS = ["//health", "/health/..", "/health/../metrics", "/./metrics", "/metrics/", "/%6detrics", "/v1/models#health"]
PATHS += ["/docs/../v1/models", "/health/%2e%2e/metrics", "/v1/models?x=/health", "/HEALTH", "/health;/metrics"]


def test_withstood_open_paths(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "TRACE"):
            for path in PATHS:
                response = await caller.client.open(path, method=method)
                body = (await response.get_data()).decode()
                assert response.status_code in (200, 401, 404, 405), (method, path)
                assert response.status_code != 200 or path == "//health", (method, path)
                assert "motet_" not in body
                assert '"object":"list"' not in body
        for path in ("/health", "/version", "/docs"):
            assert (await caller.client.get(path)).status_code == 200

    drive(tmp_path / "api", scenario, settings=keyed(tmp_path, "alice"))


HOSTS = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "a b"]
ORIGINS = ["http://evil.example", "null", "http://localhost.evil.example", "file://", "http://127.0.0.1.evil.example"]


def test_withstood_hosts_and_origins(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        for host in HOSTS:
            assert (await caller.post(CHAT, {"messages": MESSAGES}, host=host)).status_code == 403, host
        for host in ("localhost", "127.0.0.1:8080", "[::1]:8080"):
            assert (await caller.post(CHAT, {"messages": MESSAGES}, host=host)).status_code == 200, host
        for origin in ORIGINS:
            response = await caller.post(CHAT, {"messages": MESSAGES}, origin=origin)
            assert (response.status_code, response.headers.get("access-control-allow-origin")) == (403, None), origin

    drive(tmp_path, scenario)


def test_withstood_stored_chains(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        async def chain() -> None:
            previous = None
            for _ in range(8):
                body = {"input": "hi", "previous_response_id": previous}
                previous = (await caller.answer(RESPONSES, body))["id"]

        chains = [asyncio.create_task(chain()) for _ in range(20)]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            assert (await caller.client.get("/v1/files")).status_code == 200
        await asyncio.gather(*chains)

    drive(tmp_path, scenario)


ELSEWHERE = [
    ("kill -9 of a rank under load", "e2e/test_faults.py", "test_a_killed_rank_fails_its_requests_and_the_engine"),
    ("kill -9 of an API worker", "e2e/test_api_workers.py", "test_"),
    ("kill -9 of the supervisor", "e2e/test_faults.py", "test_children_do_not_outlive_a_killed_supervisor"),
    ("SIGSTOP of a rank", "engine/processes/test_engine_processes.py", "test_a_hung_engine_is_replaced"),
    (
        "SIGSTOP of the loader or an API worker",
        "engine/processes/test_engine_processes.py",
        "test_a_stopped_process_is_replaced",
    ),
    ("data disk full", "api/storage/test_full_disk.py", "test_a_disk_that_becomes_full"),
    ("300 stuck uploads", "api/storage/test_uploads.py", "test_an_upload_must_make_some_pace"),
    ("a fetch larger than any adapter", "api/adapters/test_size_limit.py", "test_"),
    (
        "NaN beside other rows",
        "engine/sampling/test_top_k_top_p.py",
        "test_a_row_of_nan_yields_some_id",
    ),
    (
        "soak: nothing is left behind",
        "api/http/test_disconnect_leaks.py",
        "test_clients_that_leave_at_any_point",
    ),
    ("rows count against fairness", "engine/test_waiting_limit.py", "test_one_key_leaves_half_of_the_limit"),
]


@pytest.mark.parametrize(("attack", "file", "test"), ELSEWHERE, ids=[row[0] for row in ELSEWHERE])
def test_an_attack_that_needs_processes_is_run(attack: str, file: str, test: str) -> None:
    """The test exists, and `make test` runs it."""
    tree = ast.parse((TESTS / file).read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith(test)]
    assert found, attack
    assert not any("slow" in ast.unparse(decorator) for node in found for decorator in node.decorator_list)
