"""GET /openapi.json and GET /docs, a page that renders it. Both are made once and need no internet."""

from __future__ import annotations

from importlib.resources import files

from quart import Blueprint, Response

from motet.api.openapi import openapi_document
from motet.api.responses import ENCODER
from motet.api.services import Services

# The page's own script and style, and the document of this server: nothing else.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
)


def docs_routes(services: Services) -> Blueprint:
    """The routes; they need nothing of `services`."""
    routes = Blueprint("docs", __name__)
    document = ENCODER.encode(openapi_document())
    page = files("motet.api").joinpath("docs_page.html").read_bytes()

    @routes.get("/openapi.json")
    async def openapi() -> Response:
        return Response(document, content_type="application/json")

    @routes.get("/docs")
    async def docs() -> Response:
        response = Response(page, content_type="text/html; charset=utf-8")
        response.headers["content-security-policy"] = POLICY
        return response

    return routes
