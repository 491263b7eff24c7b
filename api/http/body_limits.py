"""How large a request's body may be, and how long it may take to arrive: uploads get more than JSON does."""

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
"""Bytes a second that an upload must make, beside the seconds that any body has."""

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


async def discard_body(request: Request) -> None:
    """Read what is still to come of a body that is refused: a client that is cut off while it sends sees no answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            async for _ in request.body:
                pass


class LimitedRequest(Request):
    """The application's requests, whose limits depend on their path."""

    def __init__(self, method: str, scheme: str, path: str, *others: Any, **limits: Any) -> None:
        is_upload = method == "POST" and path == UPLOAD_PATH
        if is_upload:
            limits["max_content_length"] = None  # the route knows what there is room for
        # Quart's own limit is an asyncio.wait_for, which forgets (in Python 3.11) that it was cancelled when the
        # body is complete at that moment: who leaves right after sending would be answered to the end.
        limits["body_timeout"] = None
        super().__init__(method, scheme, path, *others, **limits)
        if is_upload:  # else the form's reader takes the limit of other bodies for what may come at once
            self.max_content_length = self.content_length
        self.max_form_parts, self.max_form_memory_size = FORM_PARTS, FORM_BYTES

    spool: Callable[[], BinaryIO] | None = None
    """Makes the files that an upload's parts are written into."""

    def make_form_data_parser(self) -> FormDataParser:
        """Quart's, which writes files to where `spool` says instead of the directory for temporary files."""
        parser = super().make_form_data_parser()
        if (spool := self.spool) is not None:
            parser.stream_factory = lambda *_: spool()
        return parser

    async def get_data(self, *options: Any, **named: Any) -> Any:
        """Quart's, for a while. Raises RequestTimeout."""
        async with _arriving(BODY_SECONDS):
            return await super().get_data(*options, **named)

    async def _load_form_data(self) -> None:
        seconds = BODY_SECONDS + (self.content_length or 0) / UPLOAD_PACE
        async with _arriving(min(seconds, MAX_UPLOAD_SECONDS)):
            try:
                await super()._load_form_data()
            except RequestEntityTooLarge:  # only the form can be: the file's size was checked by the length
                raise PayloadTooLarge(
                    f"an upload's form has at most {FORM_PARTS} parts, and {FORM_BYTES} bytes in each but the file"
                ) from None
