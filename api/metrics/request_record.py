"""What becomes known of one request while it runs, for its access line and the metrics.

Holds no prompt, no answer, no key and no token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from quart import g, has_request_context

from motet.api.metrics.timing import Timing
from motet.core import error_codes


@dataclass
class RequestRecord:
    """One request. `adapter` is `source:id`, empty for the base model; `generation` names the adapter's exact content.

    `timing` is set once sequences run. `failure` is an error's code. `complete` says that a stream was sent to its end.
    """

    began: float = field(default_factory=time.perf_counter)
    request_id: str = ""
    key: str = ""
    method: str = ""
    route: str = ""
    status: int = 0
    stream: bool = False
    complete: bool = False
    disconnected: bool = False
    failure: str = ""
    adapter: str = ""
    generation: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    timing: Timing | None = None

    def ended(self) -> str:
        """How the request ended: `stop`, `length`, `cancelled`, `client_gone`, an error's code, or `done`."""
        if self.failure:
            return "cancelled" if self.failure == error_codes.REQUEST_CANCELLED else self.failure
        if self.disconnected and not (self.status and (self.complete or not self.stream)):
            return "client_gone"
        return (self.timing.finish if self.timing is not None else None) or "done"

    def outcome(self) -> str:
        """How it ended, as one of a few words: an error is `refused` (4xx) or `failed` (5xx)."""
        ended = self.ended()
        if not self.failure or ended == "cancelled":
            return ended
        return "refused" if 400 <= self.status < 500 else "failed"

    def detached(self) -> RequestRecord:
        """The record of what goes on after this request is answered; this one keeps only what it did itself."""
        rest = replace(self, method="BACKGROUND", status=200, stream=False)
        self.timing, self.prompt_tokens = None, 0
        return rest


def current_record() -> RequestRecord:
    """The current HTTP request's record; a fresh one outside of any."""
    record = g.get("record") if has_request_context() else None
    return record if isinstance(record, RequestRecord) else RequestRecord()
