"""Table rows: one client request from a public report, and the expected response."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    CHAT: {"messages": MESSAGES, "max_tokens": 1},
    COMPLETIONS: {"prompt": "hi", "max_tokens": 1},
    RESPONSES: {"input": "hi", "max_output_tokens": 1},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
}


@dataclass(frozen=True)
class Row:
    """A request, and the expected status, error, ignored fields and values.

    `values` are paths into the answer's JSON (`choices.0.finish_reason`) with the expected values; `has` is a
    substring of the body. A field of `body` that is `...` is omitted although `path` has a default for it.
    """

    slug: str
    report: str
    path: str
    body: Mapping[str, Any] | None = field(default_factory=dict)
    status: int = 200
    code: str | None = None
    param: str | None = None
    has: str = ""
    ignored: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = ""


def send(client: httpx2.Client, row: Row) -> httpx2.Response:
    """The answer to the request of `row`; a row without a body is a GET."""
    method = row.method or ("GET" if row.body is None else "POST")
    if row.body is None:
        return client.request(method, row.path, headers=dict(row.headers))
    body = {"model": "", "temperature": 0, **_DEFAULTS.get(row.path, {}), **row.body}
    sent = {key: value for key, value in body.items() if value is not ...}
    return client.request(method, row.path, json=sent, headers=dict(row.headers))


def check(row: Row, response: httpx2.Response) -> None:
    """Assert that `response` is as `row` expects."""
    assert response.status_code == row.status, response.text
    assert response.headers.get("x-motet-ignored") == row.ignored
    if row.status >= 400 and row.code is not None:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["param"]) == (row.code, row.param), error
        assert row.has in error["message"]
    else:
        assert row.has in response.text
    for path, expected in row.values.items():
        assert value_at(response.json(), path) == expected, response.text


def value_at(value: Any, path: str) -> Any:
    """The value at `path`, such as `choices.0.text`; numbers index lists, and `#` is a length."""
    for name in path.split("."):
        value = len(value) if name == "#" else value[int(name)] if isinstance(value, list) else value[name]
    return value


def stream_events(response: httpx2.Response) -> list[Any]:
    """The JSON of the events of a stream that ends with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
