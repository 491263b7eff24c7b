"""Suggests a similar route in the 404 for a path that has none."""

from __future__ import annotations

from quart import current_app, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

MAX_PATH = 200
MAX_PARTS = 8

NOT_OFFERED = "not_offered"
"""The blueprint of the routes that are not offered."""


def no_route_message() -> str:
    """The error message for the current request's path, which has no route."""
    if (similar := similar_route()) is None:
        return "no such route; GET /docs lists them"
    if similar.startswith("/v1/messages"):
        base = "Anthropic's clients need a base URL without /v1; "
    else:
        base = "OpenAI's clients need a base URL that ends in /v1; " if similar.startswith("/v1/") else ""
    return f"no such route; did you mean {similar}? {base}GET /docs lists all routes"


def similar_route() -> str | None:
    """The route that the current path ends with: clients add /v1 twice or not at all, or a trailing slash.

    None if there is no such route, or if the server does not offer it.
    """
    parts = [part for part in request.path.split("/") if part]
    if len(request.path) > MAX_PATH or len(parts) > MAX_PARTS:
        return None
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    paths = (path for end in ends for path in (f"/{end}", f"/v1/{end}") if path != request.path)
    return next(filter(_is_offered, paths), None)


def _is_offered(path: str) -> bool:
    try:
        endpoint, _ = current_app.url_map.bind("").match(path, method=request.method)
    except (HTTPException, RequestRedirect):
        return False
    return not str(endpoint).startswith(f"{NOT_OFFERED}.")
