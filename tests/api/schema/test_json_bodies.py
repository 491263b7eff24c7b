"""JSON bodies: which bytes are read as an object, and the error for each that is not."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.api_caller import CHAT, MESSAGES, Caller, drive

from motet.api.schema.parsing import MAX_CONTAINERS, MAX_VALUES, decode_object
from motet.core.errors import InvalidRequest, JsonInvalid, UnsupportedMediaType

JSON = "application/json"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1} x',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 90_000,
        '{"a": 1}'.encode("utf-16"),
    ],
)
def test_what_is_not_json(content: bytes) -> None:
    with pytest.raises(JsonInvalid):
        decode_object(content, JSON)


@pytest.mark.parametrize("content", [b"", b" \n", b"\xef\xbb\xbf"])
def test_an_empty_body_is_called_empty(content: bytes) -> None:
    with pytest.raises(JsonInvalid, match="the body is empty"):
        decode_object(content, JSON)


def test_a_byte_order_mark_is_no_part_of_the_body() -> None:
    assert decode_object(b'\xef\xbb\xbf{"a": 1}', JSON) == {"a": 1}


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_an_error_of_ours(content: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(decode_object(content, JSON), dict)


@pytest.mark.parametrize("content", [b"[]", b'"x"', b"null", b"1"])
def test_the_body_is_an_object(content: bytes) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        decode_object(content, JSON)


@pytest.mark.parametrize("mimetype", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_the_body_is_declared_as_json(mimetype: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        decode_object(b"{}", mimetype)


def test_a_body_of_very_many_parts_is_refused_before_it_is_read() -> None:
    lists, numbers = b'{"a":[' + b"[]," * MAX_CONTAINERS + b"1]}", b'{"a":[' + b"1," * MAX_VALUES + b"1,1]}"
    for content in (lists, numbers):
        with pytest.raises(InvalidRequest, match="lists and objects"):
            decode_object(content, "application/json")
    text = b'{"a": "' + b'[{,\\"' * MAX_VALUES + b'"}'
    assert len(decode_object(text, "application/json")["a"]) == 4 * MAX_VALUES


@pytest.mark.parametrize("rest", [b'\\"' * 500_000, b'"' * 999_999, b'"' + b"x," * 600_000, b"\\" * 999_999])
def test_what_is_no_json_takes_no_longer_than_what_is(rest: bytes) -> None:
    begun = time.process_time()
    with pytest.raises((InvalidRequest, JsonInvalid)):
        decode_object(b"[" * (MAX_CONTAINERS + 1) + rest, "application/json")
    assert time.process_time() - begun < 5  # it took hours


def test_what_is_nested_too_deeply_is_the_callers_mistake(tmp_path: Path) -> None:
    async def scenario(caller: Caller) -> None:
        tool = {"type": "function", "function": {"name": "f", "parameters": "DEEP"}}
        body = json.dumps({"model": "", "messages": MESSAGES, "tools": [tool]})
        body = body.replace('"DEEP"', '{"x": ' * 975 + "{}" + "}" * 975)
        response = await caller.client.post(CHAT, data=body, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert (await response.get_json())["error"]["code"] == "invalid_json"

    drive(tmp_path, scenario)
