"""How large a request's body may be, and how long it may take to arrive: uploads get more than JSON does."""

from __future__ import annotations

from typing import Any

from quart import Request

UPLOAD_PATH = "/v1/files"
UPLOAD_SECONDS = 3600
FORM_BYTES = 64 << 10
"""What an upload has beside the file's content."""


def limited_requests(max_file: int) -> type[Request]:
    """The application's class of requests, whose limits depend on their path. `max_file` is in bytes."""

    class LimitedRequest(Request):
        def __init__(self, method: str, scheme: str, path: str, *others: Any, **limits: Any) -> None:
            if method == "POST" and path == UPLOAD_PATH:
                limits["max_content_length"] = max_file + FORM_BYTES
                limits["body_timeout"] = UPLOAD_SECONDS
            super().__init__(method, scheme, path, *others, **limits)

    return LimitedRequest
