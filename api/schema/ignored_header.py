"""The response header `x-motet-ignored`: the names of request fields that had no effect."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from quart import g

MAX_IGNORED_NAMES = 32
MAX_IGNORED_LENGTH = 64
MAX_IGNORED_BYTES = 1024
"""Of the whole header; a proxy or client that limits headers must never drop an answer for it."""

MORE = "..."
"""Stands at the end of a header that does not hold all names."""


def note_ignored(names: Iterable[str]) -> None:
    """Name these fields of the current request in its response's header."""
    g.ignored = (*g.get("ignored", ()), *names)


def ignored_header() -> str:
    """The header's value for the current request; empty where every field had its effect."""
    return header_value(g.get("ignored", ()))


def header_value(names: Iterable[str]) -> str:
    """`names`, quoted as in a URL, comma-separated; at most MAX_IGNORED_NAMES and MAX_IGNORED_BYTES of them."""
    header = ""
    for count, name in enumerate(dict.fromkeys(names)):
        quoted = quote(name[:MAX_IGNORED_LENGTH], safe="[].", errors="replace")
        if count == MAX_IGNORED_NAMES or len(header) + len(quoted) + len(MORE) + 2 > MAX_IGNORED_BYTES:
            return f"{header},{MORE}"
        header = f"{header},{quoted}" if header else quoted
    return header
