"""Makes a JSON response of a struct."""

from __future__ import annotations

from typing import Any

from quart import Response

from motet.api.schema.openai_objects import ENCODER


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The response with `body`, a msgspec struct or plain data, as JSON."""
    return Response(ENCODER.encode(body), status, headers, content_type="application/json")
