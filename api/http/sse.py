"""Frames server-sent events: the events of every API, errors in mid-stream, [DONE] and comments."""

from __future__ import annotations

from typing import Any

import msgspec

from motet.api.schema.openai_objects import ENCODER, error_body
from motet.core.errors import ErrorInfo

DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"


def event_frame(data: msgspec.Struct | dict[str, Any], name: str = "") -> bytes:
    """One event, with a `name` if the API names its events. JSON has no raw line ends, so one `data:` line holds it."""
    frame = b"data: " + ENCODER.encode(data) + b"\n\n"
    return b"event: " + name.encode() + b"\n" + frame if name else frame


def error_frame(info: ErrorInfo) -> bytes:
    """The event that ends a stream whose request failed, in OpenAI's shape; no [DONE] follows it."""
    return event_frame(error_body(info))


def comment_frame(text: str) -> bytes:
    """A comment, which clients ignore."""
    return b": " + text.encode() + b"\n\n"
