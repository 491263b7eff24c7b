"""Who asks, and what they prove: an API key's owner, and the tokens that adapter sources may see.

Nothing secret in here is ever logged or sent back.
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
    """`owner` is the API key's name ("" where the server has no keys), and owns what this caller stores.

    `priority` is added to what requests ask for: higher is later. `began` is when the request came
    (time.perf_counter), and `client` the address that it came from, where it came over HTTP.
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
        """Whose work this is in the queues that requests share (engine/client/fair_queue.py)."""
        return self.owner or self.client

    def source_token(self, source: str, from_body: str | None = None) -> str | None:
        """The token for the adapter source called `source`: `api_token`, else `x-adapter-token`.

        Else a Bearer, but only for the hub, and only if it is the hub's own kind: any other is meant for this server
        alone, and no other source has any business with a token of the hub.
        """
        return from_body or self.adapter_token or (self.hub_token if source == HUB else None)


def hub_bearer(authorization: str) -> str | None:
    """The token of `Bearer hf_…`, if the Authorization header is that."""
    scheme, _, bearer = authorization.partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" and bearer.strip().startswith("hf_") else None


def current_caller() -> Caller:
    """The current request's caller."""
    return cast(Caller, g.caller)
