"""Authentication: creates the Caller of every request, checks API keys, Host and Origin."""

from __future__ import annotations

import ipaddress
import re
import socket
import uuid
from pathlib import Path

from quart import Quart, Request, Response, g, request
from werkzeug.datastructures import Headers

from motet.api.http.access_log import record_response, start_record
from motet.api.http.api_keys import KeyRing
from motet.api.http.caller import Caller, hub_bearer
from motet.api.http.cors import Origins
from motet.api.http.probe_paths import HEALTH_PATHS, LIVE_PATHS, READY_PATHS
from motet.api.metrics.request_record import RequestRecord
from motet.api.schema.ignored_fields_header import ignored_header
from motet.core import error_codes
from motet.core.errors import Forbidden, InvalidRequest, Unauthenticated
from motet.core.settings import Settings

PUBLIC_PATHS = (
    *("/", *HEALTH_PATHS, *READY_PATHS, *LIVE_PATHS, "/ping", "/startup"),
    *("/docs", "/openapi.json", "/version"),
)
"""GET of these needs no key and no known host name: they reveal nothing about requests or adapters."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def install_access(app: Quart, settings: Settings) -> None:
    """Give every request of `app` an id and a caller. Raises StartupError if the key file is invalid."""
    keys = KeyRing(Path(settings.api_keys)) if settings.api_keys else None
    origins = Origins(settings.cors_origin)
    hosts = _server_hosts(settings, origins)

    @app.before_request
    async def identify() -> None:
        record = g.record = start_record(request)
        g.request_id = record.request_id = request_id(request.headers.get("x-request-id", ""))
        _refuse_two_lengths(request)
        if keys is None:
            if not _needs_no_key(request):
                _refuse_foreign_pages(request, origins, hosts)
            g.caller = Caller(
                admin=True,
                request_id=g.request_id,
                client=request.remote_addr or "",
                began=record.began,
                record=record,
                adapter_token=request.headers.get("x-adapter-token"),
                hub_token=hub_bearer(request.headers.get("authorization", "")),
            )
        elif not _needs_no_key(request):
            g.caller = _authenticate(keys, request.headers, record)
            record.key = g.caller.owner

    @app.after_request
    async def add_headers(response: Response) -> Response:
        record_response(g.record, response)
        response.headers["x-request-id"] = g.request_id
        if ignored := ignored_header():
            response.headers["x-motet-ignored"] = ignored
        if response.status_code == 401:
            response.headers["www-authenticate"] = "Bearer"
        if _has_two_lengths(request):
            response.headers["connection"] = "close"
        return response


def request_id(sent: str) -> str:
    """The client's id for the request if it is well-formed, else a new id."""
    return sent if _REQUEST_ID.fullmatch(sent) else f"req_{uuid.uuid4().hex}"


def _has_two_lengths(incoming: Request) -> bool:
    return "content-length" in incoming.headers and "transfer-encoding" in incoming.headers


def _refuse_two_lengths(incoming: Request) -> None:
    """Raise InvalidRequest for a body with two lengths: a proxy may use the other one (RFC 9112, section 6.3)."""
    if _has_two_lengths(incoming):
        raise InvalidRequest(
            "send content-length or transfer-encoding, not both",
            param="transfer-encoding",
            code=error_codes.BAD_REQUEST,
        )


def _refuse_foreign_pages(incoming: Request, origins: Origins, hosts: frozenset[str]) -> None:
    """On a server without keys, refuse requests from web pages of other sites.

    Raises Forbidden for a Host that is not in `hosts`, which a page sends after DNS rebinding, and for a write from a
    page of a foreign origin, which a browser sends without a preflight.
    """
    if origins.any:
        return
    host = incoming.headers.get("host", "")
    name = _host_name(host)
    if not (_is_address(name) or name.endswith(".localhost") or name in hosts or "*" in hosts):
        raise Forbidden(
            f"the host name {name[:200]!r} is not allowed on this server without API keys; if it is correct, start the "
            f"server with --allowed-host {name[:200]}, or enable API keys"
        )
    origin = incoming.headers.get("origin", f"http://{host}")  # without the header, the client is not a browser
    is_own = origin in (f"http://{host}", f"https://{host}")
    if incoming.method not in ("GET", "HEAD") and not is_own and not origins.allow(origin):
        raise Forbidden(
            f"pages of {origin[:200]} may not call this server; allow them with --cors-origin, or enable API keys"
        )


def _server_hosts(settings: Settings, origins: Origins) -> frozenset[str]:
    """The host names that requests may use for this server."""
    machine = socket.gethostname()
    named = (*settings.allowed_host, *origins.hosts)
    return frozenset(map(_host_name, ("", "localhost", settings.host, machine, machine.partition(".")[0], *named)))


def _host_name(host: str) -> str:
    """`host` in lower case, without the port, the brackets of an IPv6 address and a trailing dot."""
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _needs_no_key(incoming: Request) -> bool:
    return incoming.method == "OPTIONS" or (incoming.method in ("GET", "HEAD") and incoming.path in PUBLIC_PATHS)


def _authenticate(keys: KeyRing, headers: Headers, record: RequestRecord) -> Caller:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    sent = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not sent:
        raise Unauthenticated("missing API key: send it as Authorization: Bearer KEY, or as x-api-key")
    key = keys.find(sent)
    if key is None:
        raise Unauthenticated("invalid API key: check it, or ask the operator for a new one")
    return Caller(
        owner=key.name,
        admin=key.admin,
        request_id=record.request_id,
        began=record.began,
        adapter_token=headers.get("x-adapter-token"),
        record=record,
    )
