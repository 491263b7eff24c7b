"""The caller of a request: the API key's owner, and the tokens for adapter sources.

Its secrets are never logged or sent back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import cast

from quart import g

from motet.api.metrics.request_record import RequestRecord

HUB = "hub"


@dataclass(frozen=True)
class Caller:
    """`owner` is the API key's name ("" on a server without keys), which owns what the caller stores.

    `priority` is added to the requests' priorities: higher is later. `began` is when the request arrived
    (time.perf_counter), `client` the address it came from, if it came over HTTP.
    """

    owner: str = ""
    admin: bool = False
    priority: int = 0
    request_id: str = ""
    client: str = ""
    began: float = field(default_factory=time.perf_counter)
    adapter_token: str | None = field(default=None, repr=False)
    hub_token: str | None = field(default=None, repr=False)
    record: RequestRecord = field(default_factory=RequestRecord, repr=False, compare=False)

    @property
    def flow(self) -> str:
        """The key by which shared queues take turns (engine/client/fair_queue.py)."""
        return self.owner or self.client

    def source_token(self, source: str, from_body: str | None = None) -> str | None:
        """The token for the adapter source `source`: `api_token`, else `x-adapter-token`.

        Else, for the hub only, a bearer token that starts with `hf_`: any other bearer is for this server, and no
        other source may receive a token of the hub.
        """
        return from_body or self.adapter_token or (self.hub_token if source == HUB else None)


def hub_bearer(authorization: str) -> str | None:
    """The token in an Authorization header `Bearer hf_…`; else None."""
    scheme, _, bearer = authorization.partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" and bearer.strip().startswith("hf_") else None


def current_caller() -> Caller:
    """The current request's caller."""
    return cast(Caller, g.caller)
