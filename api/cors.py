"""Cross-origin requests: which web pages may call this server from a browser."""

from __future__ import annotations

from datetime import timedelta

from quart import Quart
from quart_cors import cors

from motet.core.settings import Settings

EXPOSED = ("x-request-id", "x-motet-ignored", "retry-after")


def install_cors(app: Quart, settings: Settings) -> None:
    """Let the pages of `cors_origin` in; without any, a browser keeps every page of another origin out."""
    if settings.cors_origin:
        cors(
            app,
            allow_origin=list(settings.cors_origin),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=list(EXPOSED),
            max_age=timedelta(hours=1),
        )
