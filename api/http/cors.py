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
"""Replaces `*` in `scheme://*`: browsers send neither a path nor a user."""


def origin_pattern(allowed: str) -> re.Pattern[str]:
    """The pattern for an entry of `cors_origin`: `*` is any host, `*.` any subdomains, `:*` any port or none.

    The whole origin must match: a longer name that contains the entry does not.
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
        """The hosts, with ports, of the entries without wildcards."""
        return [entry.partition("//")[2] for entry in self._exact]


def install_cors(app: Quart, settings: Settings) -> None:
    """Send CORS headers for the origins in `cors_origin`; without any, browsers block pages of other origins."""
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
