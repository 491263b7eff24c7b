"""What a caller proves: the token that an adapter source may see. It is never logged and never sent back."""

from __future__ import annotations

from quart import request


def source_token(from_body: str | None = None) -> str | None:
    """The current request's token for the adapter source: the body's `api_token`, else `x-adapter-token`.

    Else a Bearer, but only if it is the hub's own kind (`hf_…`): any other is meant for this server alone.
    """
    if from_body:
        return from_body
    if token := request.headers.get("x-adapter-token"):
        return token
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" and bearer.strip().startswith("hf_") else None
