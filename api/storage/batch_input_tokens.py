"""Finds tokens of adapter sources in a batch's input file: the server stores the file, and must not store tokens."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

ADVICE = (
    "the input of a batch is stored, so it must not contain a token: leave api_token out. A batch can use a gated "
    "adapter only if the server can read it itself: from an adapter root, or with MOTET_HUB_TOKEN"
)
_PIECE = 4 << 20
_MARK = b'"api_token"'


class _Body(msgspec.Struct):
    api_token: object = None


class _Line(msgspec.Struct):
    body: _Body


def line_with_token(content: BinaryIO) -> int | None:
    """The number (from 1) of the first line whose request has a token; reads `content` from the start."""
    content.seek(0)
    number = 0
    while line := content.readline(_PIECE):
        number += 1
        if _MARK in line and _has_token(line):
            return number
        while not line.endswith(b"\n") and (line := content.readline(_PIECE)):
            pass  # skip the rest of a line that is too long for a batch
    return None


def _has_token(line: bytes) -> bool:
    try:
        return msgspec.json.decode(line, type=_Line).body.api_token is not None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False  # the batch is refused because of this line
