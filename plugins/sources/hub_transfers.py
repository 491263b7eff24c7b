"""Downloads from a hub with a size limit, a minimum rate, and cancellation.

The size limit holds for decompressed data. The hub's library has no such limits.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import httpx2
from huggingface_hub import get_session, hf_raise_for_status

MAX_ERROR_BYTES = 64 << 10
RETRIES = 2
PIECE_BYTES = 1 << 20
RATE_SECONDS = 30.0
RATE_BYTES = 64 << 10
"""A transfer fails if it receives fewer bytes than this in RATE_SECONDS."""


class Cancelled(Exception):
    """The caller cancelled the transfer."""


class TooSlow(OSError):
    """The transfer is below the minimum rate."""


class BadResponse(ValueError):
    """The hub's response is larger than announced, truncated, or in an unknown encoding."""


@dataclass(frozen=True)
class Transfers:
    """Requests to a hub for one caller; setting `cancelled` ends them. `seconds` is the time-out per read."""

    headers: Mapping[str, str]
    seconds: float
    cancelled: Event = field(default_factory=Event)

    def read(self, url: str, limit: int) -> bytes:
        """The body at `url`, of at most `limit` bytes. Raises errors of the library, of httpx2 and of this module."""
        return b"".join(self._body(url, limit))

    def save(self, url: str, target: Path, size: int) -> None:
        """Write the body at `url`, which has `size` bytes, to `target`. Raises as `read` does, and OSError."""
        for _ in range(RETRIES):
            with contextlib.suppress(httpx2.TransportError):  # broken connection: start again
                self._save(url, target, size)
                return
        self._save(url, target, size)

    def _save(self, url: str, target: Path, size: int) -> None:
        written = 0
        with target.open("wb") as file:
            for piece in self._body(url, size):
                file.write(piece)
                written += len(piece)
        if written != size:
            raise BadResponse(f"{written} of {size} bytes")

    def _body(self, url: str, limit: int) -> Iterator[bytes]:
        headers = {**self.headers, "accept-encoding": "identity"}
        request = get_session().stream("GET", url, headers=headers, timeout=self.seconds, follow_redirects=True)
        with request as response:
            _check_status(response)
            total = 0
            for piece in _decoded(response, self._at_minimum_rate(response.iter_raw())):
                total += len(piece)
                if total > limit:
                    raise BadResponse(f"more than {limit} bytes")
                yield piece

    def _at_minimum_rate(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """`pieces`, until they come too slowly or the transfer is cancelled."""
        since, received = time.monotonic(), 0
        for piece in pieces:
            if self.cancelled.is_set():
                raise Cancelled
            received += len(piece)
            now = time.monotonic()
            if now - since >= RATE_SECONDS:
                if received < RATE_BYTES:
                    raise TooSlow
                since, received = now, 0
            yield piece


def _check_status(response: httpx2.Response) -> None:
    """Raise the library's error for a failed response; reads at most MAX_ERROR_BYTES of its body."""
    if response.status_code < 400:
        return
    body = b""
    for piece in response.iter_raw(chunk_size=MAX_ERROR_BYTES):
        body = piece
        break
    headers = {k: v for k, v in response.headers.items() if k.lower() not in ("content-encoding", "content-length")}
    hf_raise_for_status(httpx2.Response(response.status_code, headers=headers, content=body, request=response.request))


def _decoded(response: httpx2.Response, raw: Iterator[bytes]) -> Iterator[bytes]:
    """`raw`, decompressed; compressed data comes in pieces of at most PIECE_BYTES."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        yield from raw
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadResponse(f"content-encoding {encoding}")
    decompressor = zlib.decompressobj(wbits=47)  # gzip or zlib, detected
    try:
        for data in raw:
            while data:
                yield decompressor.decompress(data, PIECE_BYTES)
                data = decompressor.unconsumed_tail
        yield decompressor.flush()
    except zlib.error as error:
        raise BadResponse("damaged compression") from error
