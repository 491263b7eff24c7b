"""Cross-origin requests: which web pages may call this server from a browser."""

from __future__ import annotations

import re
from datetime import timedelta

from quart import Quart
from quart_cors import cors

from motet.core.settings import Settings

EXPOSED = ("x-request-id", "request-id", "x-motet-ignored", "retry-after")
ANY_PORT = r"(?::\d+)?"
ANY_HOST = r"[^/:]+"
"""In place of `*` in `scheme://*`: browsers send neither a path nor a user."""


def origin_pattern(allowed: str) -> re.Pattern[str]:
    """What an entry of `cors_origin` matches: `*` is any host, `*.` any names before a domain, `:*` any port or none.

    A page must not be able to match by having the entry's text inside a longer name.
    """
    scheme, _, rest = allowed.partition("://")
    host = rest.removesuffix(":*")
    if host == "*":
        pattern = ANY_HOST
    elif host.startswith("*."):
        pattern = rf"{ANY_HOST}{re.escape(host[1:])}"
    else:
        pattern = re.escape(host)
    return re.compile(rf"{re.escape(scheme)}://{pattern}{ANY_PORT if rest.endswith(':*') else ''}\Z")


class Origins:
    """The origins whose pages may call the server."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.any = "*" in allowed
        self._exact = frozenset(entry for entry in allowed if "*" not in entry)
        self.patterns = [origin_pattern(entry) for entry in allowed if "*" in entry and entry != "*"]

    def allow(self, origin: str) -> bool:
        """Whether pages of `origin` may call the server."""
        return self.any or origin in self._exact or any(pattern.match(origin) for pattern in self.patterns)

    @property
    def hosts(self) -> list[str]:
        """The hosts, with their ports, that are named in full."""
        return [entry.partition("//")[2] for entry in self._exact]


def install_cors(app: Quart, settings: Settings) -> None:
    """Let the pages of `cors_origin` in; without any, a browser keeps every page of another origin out."""
    if settings.cors_origin:
        exact = [entry for entry in settings.cors_origin if entry == "*" or "*" not in entry]
        cors(
            app,
            allow_origin=[*exact, *Origins(settings.cors_origin).patterns],
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
            max_age=timedelta(hours=1),
        )
