"""What a caller proves: the token that an adapter source may see. It is never logged and never sent back."""

from __future__ import annotations

from quart import request

HUB = "hub"


def source_token(source: str, from_body: str | None = None) -> str | None:
    """The current request's token for the adapter source called `source`: `api_token`, else `x-adapter-token`.

    Else a Bearer, but only for the hub, and only if it is the hub's own kind (`hf_…`): any other is meant for this
    server alone, and no other source has any business with a token of the hub.
    """
    if from_body:
        return from_body
    if token := request.headers.get("x-adapter-token"):
        return token
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    of_the_hub = scheme.lower() == "bearer" and bearer.strip().startswith("hf_")
    return bearer.strip() if source == HUB and of_the_hub else None
