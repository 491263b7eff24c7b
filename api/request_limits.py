"""How large a request's body may be, and how long it may take to arrive: uploads get more than JSON does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from quart import Request
from werkzeug.exceptions import RequestTimeout

UPLOAD_PATH = "/v1/files"
UPLOAD_SECONDS = 3600
BODY_SECONDS = 60
FORM_BYTES = 64 << 10
FORM_PARTS = 8
"""What an upload has beside the file's content."""


@asynccontextmanager
async def _arriving(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestTimeout() from None


def limited_requests(max_file: int) -> type[Request]:
    """The application's class of requests, whose limits depend on their path. `max_file` is in bytes."""

    class LimitedRequest(Request):
        def __init__(self, method: str, scheme: str, path: str, *others: Any, **limits: Any) -> None:
            self.body_seconds = BODY_SECONDS
            if method == "POST" and path == UPLOAD_PATH:
                limits["max_content_length"] = max_file + FORM_BYTES
                self.body_seconds = UPLOAD_SECONDS
            # Quart's own limit is an asyncio.wait_for, which forgets (in Python 3.11) that it was cancelled when the
            # body is complete at that moment: who leaves right after sending would be answered to the end.
            limits["body_timeout"] = None
            super().__init__(method, scheme, path, *others, **limits)
            self.max_form_parts = FORM_PARTS

        async def get_data(self, *options: Any, **named: Any) -> Any:
            async with _arriving(self.body_seconds):
                return await super().get_data(*options, **named)

        async def _load_form_data(self) -> None:
            async with _arriving(self.body_seconds):
                await super()._load_form_data()

    return LimitedRequest
