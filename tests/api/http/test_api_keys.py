"""API keys: the key file, authentication, and what one key cannot see of another's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.api_caller import CHAT, MESSAGES, Caller, drive

from motet.api.http import api_keys
from motet.api.http.api_keys import KeyRing, key_line, new_key, read_keys
from motet.api.http.auth import PUBLIC_PATHS
from motet.api.server.cli import main
from motet.core.errors import StartupError
from motet.core.settings import Settings

ALICE, BOB, BOSS = "sk-motet-alice", "sk-motet-bob", "sk-motet-boss"


def write(path: Path, *lines: str) -> Path:
    path.write_text("# who uses the server\n\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(
        tmp_path / "keys",
        key_line("alice", ALICE, False) + "  # a comment",
        key_line("bob", BOB, False),
        key_line("boss", BOSS, True),
    )


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_the_file_has_names_and_digests_but_no_keys(file: Path) -> None:
    assert [(key.name, key.admin) for key in read_keys(file)] == [("alice", False), ("bob", False), ("boss", True)]
    assert not any(key in file.read_text() for key in (ALICE, BOB, BOSS))
    assert not any(key in repr(KeyRing(file).find(key)) for key in (ALICE, BOB, BOSS))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "contains no keys"),
        ("alice sk-motet-oops", "line 1"),
        (f"\nalice {'0' * 64} boss", "line 2"),
        (f"a:b {'0' * 64}", "line 1"),
        ("\udc80", "cannot be read"),
    ],
)
def test_a_file_that_is_wrong_says_where_and_quotes_no_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(StartupError, match=complaint) as caught:
        read_keys(path)
    assert "oops" not in caught.value.message
    with pytest.raises(StartupError, match=r"cannot be read: No such file or directory$"):
        read_keys(tmp_path / "absent")


def test_a_new_version_counts_and_a_broken_one_does_not(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    ring = KeyRing(file)
    assert ring.find(ALICE) is not None
    assert ring.find("sk-motet-nobody") is None
    fresh = new_key()
    write(file, key_line("carol", fresh, False))
    assert (ring.find(ALICE), getattr(ring.find(fresh), "name", None)) == (None, "carol")
    file.write_text("nonsense")
    os.utime(file, (time.time() + 5, time.time() + 5))
    assert ring.find(fresh) is not None
    file.unlink()
    assert ring.find(fresh) is not None


def test_a_change_while_the_file_is_read_at_the_start_is_not_missed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_and_change(path: Path) -> list[api_keys.ApiKey]:
        monkeypatch.undo()
        found = read_keys(path)
        write(path, key_line("carol", "sk-motet-carol", False))
        return found

    monkeypatch.setattr(api_keys, "read_keys", read_and_change)
    ring = KeyRing(file)
    monkeypatch.setattr(api_keys, "CHECK_SECONDS", 0.0)
    assert (ring.find(ALICE), getattr(ring.find("sk-motet-carol"), "name", None)) == (None, "carol")


def test_without_a_key_nothing_but_what_tells_of_the_server(tmp_path: Path, file: Path) -> None:
    async def scenario(caller: Caller) -> None:
        assert await caller.error(CHAT, {"messages": MESSAGES}) == (401, "invalid_api_key", None)
        refused = await caller.post(CHAT, {"messages": MESSAGES}, **bearer("sk-motet-nobody"))
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "nobody" not in (await refused.get_data()).decode()
        assert refused.headers["x-request-id"]
        for path in ("/v1/models", "/metrics", "/v1/files", "/nowhere"):
            assert (await caller.client.get(path)).status_code == 401, path
        for path in PUBLIC_PATHS:
            assert (await caller.client.get(path)).status_code in (200, 404), path
        for headers in (bearer(ALICE), {"authorization": f"bearer {ALICE}"}, {"x-api-key": ALICE}):
            assert (await caller.post(CHAT, {"messages": MESSAGES}, **headers)).status_code == 200
        assert caller.api.engine.submits[-1].group.startswith("alice:")

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


def test_what_one_key_stores_is_not_there_for_another(tmp_path: Path, file: Path) -> None:
    async def scenario(caller: Caller) -> None:
        made = await caller.answer("/v1/responses", {"input": "hi"}, **bearer(ALICE))
        for key, status in ((ALICE, 200), (BOB, 404), (BOSS, 404)):
            response = await caller.client.get(f"/v1/responses/{made['id']}", headers=bearer(key))
            assert response.status_code == status

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


def test_an_api_key_is_never_shown_to_an_adapter_source(tmp_path: Path, file: Path) -> None:
    write(file, key_line("alice", "hf_alice", False))

    async def scenario(caller: Caller) -> None:
        await caller.answer(CHAT, {"model": "hub:org/name", "messages": MESSAGES}, **bearer("hf_alice"))
        assert caller.api.shelf.tokens == [None]
        headers = {**bearer("hf_alice"), "x-adapter-token": "hf_good"}
        await caller.answer(CHAT, {"model": "shelf:secret", "messages": MESSAGES}, **headers)
        assert caller.api.shelf.tokens[1:] == ["hf_good"]

    drive(tmp_path / "api", scenario, settings=Settings(api_keys=str(file)))


def test_the_command_makes_a_line_and_shows_the_key_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["motet", "key", "ops", "--admin"])
    main()
    printed = capsys.readouterr()
    path = tmp_path / "keys"
    path.write_text(printed.out)
    key = printed.err.split()[-1]
    assert KeyRing(path).find(key) == read_keys(path)[0]
    assert read_keys(path)[0].admin
    assert key not in printed.out
    monkeypatch.setattr("sys.argv", ["motet", "key", "not a name"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "not a valid key name" in capsys.readouterr().err
