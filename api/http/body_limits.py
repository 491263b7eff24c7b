"""Limits on the size and the arrival time of request bodies; uploads have larger ones than JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO

from quart import Request
from quart.formparser import FormDataParser
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from motet.core.errors import PayloadTooLarge

UPLOAD_PATH = "/v1/files"
MAX_UPLOAD_SECONDS = 3600
UPLOAD_PACE = 64 << 10
"""Bytes per second at which an upload must arrive, in addition to BODY_SECONDS."""

BODY_SECONDS = 60
FORM_BYTES = 64 << 10
FORM_PARTS = 8
"""Limits for an upload's form: its parts, and the bytes of each part except the file."""


@asynccontextmanager
async def _arriving(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise RequestTimeout() from None


async def discard_body(request: Request) -> None:
    """Read and drop the rest of a refused body: a client that is cut off while sending sees no response."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            async for _ in request.body:
                pass


class LimitedRequest(Request):
    """A request with limits that depend on its path."""

    def __init__(self, method: str, scheme: str, path: str, *others: Any, **limits: Any) -> None:
        is_upload = method == "POST" and path == UPLOAD_PATH
        if is_upload:
            limits["max_content_length"] = None  # the route checks the free space
        # Quart's limit uses asyncio.wait_for, which in Python 3.11 loses a cancellation if the body completes at that
        # moment: the server would go on answering a client that disconnects right after sending.
        limits["body_timeout"] = None
        super().__init__(method, scheme, path, *others, **limits)
        if is_upload:  # else the form parser applies the limit of other bodies to its buffer
            self.max_content_length = self.content_length
        self.max_form_parts, self.max_form_memory_size = FORM_PARTS, FORM_BYTES

    spool: Callable[[], BinaryIO] | None = None
    """Creates the files into which an upload's parts are written."""

    def make_form_data_parser(self) -> FormDataParser:
        """Quart's parser, which writes files into `spool()` instead of the temporary directory."""
        parser = super().make_form_data_parser()
        if (spool := self.spool) is not None:
            parser.stream_factory = lambda *_: spool()
        return parser

    async def get_data(self, *options: Any, **named: Any) -> Any:
        """The body. Raises RequestTimeout if it does not arrive in time."""
        async with _arriving(BODY_SECONDS):
            return await super().get_data(*options, **named)

    async def _load_form_data(self) -> None:
        seconds = BODY_SECONDS + (self.content_length or 0) / UPLOAD_PACE
        async with _arriving(min(seconds, MAX_UPLOAD_SECONDS)):
            try:
                await super()._load_form_data()
            except (
                RequestEntityTooLarge
            ):  # only the form can exceed a limit: the file's size was checked by content-length
                raise PayloadTooLarge(
                    f"an upload's form may have {FORM_PARTS} parts, and {FORM_BYTES} bytes in each part except the file"
                ) from None
