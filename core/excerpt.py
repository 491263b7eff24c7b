"""Shortens text from a request for an error message."""

from __future__ import annotations

MAX_EXCERPT = 200


def shortened(text: str) -> str:
    """`text`; without its middle part if it has more than MAX_EXCERPT characters."""
    return text if len(text) <= MAX_EXCERPT else f"{text[: MAX_EXCERPT - 60]} … {text[-57:]}"
