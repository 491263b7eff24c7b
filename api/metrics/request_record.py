"""The facts about one request that its access log line and the metrics need.

Contains no prompt, answer, key or token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from quart import g, has_request_context

from motet.api.metrics.request_timing import Timing
from motet.core import error_codes


@dataclass
class RequestRecord:
    """One request. `adapter` is `source:id`, empty for the base model; `generation` names the adapter's exact content.

    `timing` is set once sequences run. `complete`: a stream was sent to its end.
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
    error_code: str = ""
    adapter: str = ""
    generation: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    timing: Timing | None = None

    def ended(self) -> str:
        """How the request ended: `stop`, `length`, `cancelled`, `client_gone`, an error's code, or `done`."""
        if self.error_code:
            return "cancelled" if self.error_code == error_codes.REQUEST_CANCELLED else self.error_code
        if self.disconnected and not (self.status and (self.complete or not self.stream)):
            return "client_gone"
        return (self.timing.finish if self.timing is not None else None) or "done"

    def outcome(self) -> str:
        """How the request ended, as a metric's label: an error is `refused` (4xx) or `failed` (5xx)."""
        ended = self.ended()
        if not self.error_code or ended == "cancelled":
            return ended
        return "refused" if 400 <= self.status < 500 else "failed"

    def detached(self) -> RequestRecord:
        """A record for work that continues after the response is sent; this record keeps only the request's part."""
        rest = replace(self, method="BACKGROUND", status=200, stream=False)
        self.timing, self.prompt_tokens = None, 0
        return rest


def current_record() -> RequestRecord:
    """The current HTTP request's record; a new one outside of requests."""
    record = g.get("record") if has_request_context() else None
    return record if isinstance(record, RequestRecord) else RequestRecord()
