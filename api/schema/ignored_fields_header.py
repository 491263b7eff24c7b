"""The response header `x-motet-ignored`: the names of request fields that had no effect."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from quart import g

MAX_IGNORED_NAMES = 32
MAX_IGNORED_LENGTH = 64
MAX_IGNORED_BYTES = 1024
"""Limit of the whole header: no proxy or client may drop a response because of its length."""

MORE = "..."
"""Ends a header that does not contain all names."""


def note_ignored(names: Iterable[str]) -> None:
    """Add these fields of the current request to its response's header."""
    g.ignored = (*g.get("ignored", ()), *names)


def ignored_header() -> str:
    """The header's value for the current request; empty if every field had an effect."""
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
