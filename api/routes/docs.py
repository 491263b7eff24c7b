"""GET /openapi.json, built at its first request, and GET /docs, a page that renders it without internet access."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.resources import files

from quart import Blueprint, Response

from motet.api.routes.openapi import openapi_document
from motet.api.schema.openai_objects import ENCODER
from motet.api.schema.operations import Operation

# Only the page's own script and style, and this server's document.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)

OPERATIONS = (
    Operation("get", "/openapi.json", "This document", "server", None, description="OpenAPI 3.1."),
    Operation(
        "get",
        "/docs",
        "This document as a page",
        "server",
        None,
        media_type="text/html",
        description="Needs no internet access.",
    ),
)


def routes(operations: Iterable[Operation]) -> Blueprint:
    """The routes; the document describes `operations`."""
    blueprint = Blueprint("docs", __name__)
    page = files("motet.api.routes").joinpath("docs_page.html").read_bytes()

    @functools.cache
    def document() -> bytes:
        return ENCODER.encode(openapi_document(operations))

    @blueprint.get("/openapi.json")
    async def openapi() -> Response:
        return Response(document(), content_type="application/json")

    @blueprint.get("/docs")
    async def docs() -> Response:
        response = Response(page, content_type="text/html; charset=utf-8")
        response.headers["content-security-policy"] = POLICY
        return response

    return blueprint
