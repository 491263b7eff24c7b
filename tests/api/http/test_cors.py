"""Pages of other origins, and requests under host names that are not the server's."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from support.api_caller import CHAT, MESSAGES, Caller, drive

from motet.api.http.api_keys import key_line
from motet.core.settings import Settings

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
