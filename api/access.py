"""Who may pass: makes the Caller of every request, and refuses those without a key where there are keys."""

from __future__ import annotations

import re
import uuid
from pathlib import Path

from quart import Quart, Request, Response, g, request
from werkzeug.datastructures import Headers

from motet.api.caller import Caller, hub_bearer
from motet.api.keys import KeyRing
from motet.core.errors import Unauthenticated

OPEN_PATHS = ("/", "/health", "/ping", "/startup", "/docs", "/openapi.json")
"""GET of these needs no key: they tell of the server, not of what it does."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def install_access(app: Quart, api_keys: str) -> None:
    """Give every request of `app` an id and a caller. Raises StartupError if the file of keys is wrong."""
    keys = KeyRing(Path(api_keys)) if api_keys else None

    @app.before_request
    async def identify() -> None:
        sent = request.headers.get("x-request-id", "")
        g.request_id = sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"
        if keys is None:
            g.caller = Caller(
                admin=True,
                request_id=g.request_id,
                adapter_token=request.headers.get("x-adapter-token"),
                hub_token=hub_bearer(request.headers.get("authorization", "")),
            )
        elif not _is_open(request):
            g.caller = _known(keys, request.headers, g.request_id)

    @app.after_request
    async def add_headers(response: Response) -> Response:
        response.headers["x-request-id"] = g.request_id
        if ignored := g.get("ignored"):
            response.headers["x-motet-ignored"] = ignored
        if response.status_code == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response


def _is_open(asked: Request) -> bool:
    return asked.method == "OPTIONS" or (asked.method in ("GET", "HEAD") and asked.path in OPEN_PATHS)


def _known(keys: KeyRing, headers: Headers, request_id: str) -> Caller:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not sent:
        raise Unauthenticated("this server wants an API key: send it as Authorization: Bearer KEY")
    key = keys.find(sent)
    if key is None:
        raise Unauthenticated("the API key is not one of this server's")
    return Caller(owner=key.name, admin=key.admin, request_id=request_id, adapter_token=headers.get("x-adapter-token"))
