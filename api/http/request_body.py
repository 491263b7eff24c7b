"""Reads and parses a request's body, and notes its ignored fields for the response header."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
from quart import request

from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.parsing import Parsed, decode_object
from motet.core.errors import UnsupportedMediaType
from motet.core.excerpt import shortened

T = TypeVar("T", bound=msgspec.Struct)


async def read_body(parse: Callable[[dict[str, Any]], Parsed[T]]) -> T:
    """The current request's body, parsed by `parse`. Raises InvalidRequest, or a 413 if it is too large."""
    content = cast(bytes, await request.get_data(as_text=False))
    if (encoding := request.headers.get("content-encoding", "identity")) != "identity":
        raise UnsupportedMediaType(
            f"the body is compressed ({shortened(encoding)}); send it uncompressed", param="content-encoding"
        )
    parsed = parse(decode_object(content, request.mimetype))
    note_ignored(parsed.ignored)
    return parsed.request
