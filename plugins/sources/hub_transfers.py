"""Reading from a hub: no more bytes than allowed, compressed or not, at a lowest rate, and only while a caller waits.

The hub's library has no limit on the size of an answer, and cannot end a download that drips.
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
"""A transfer that brings fewer bytes than this in RATE_SECONDS is ended."""


class Cancelled(Exception):
    """Nobody waits for the transfer any more."""


class TooSlow(OSError):
    """The hub sends too slowly."""


class BadAnswer(ValueError):
    """The hub's answer is larger than it said, cut short, or in an unknown encoding."""


@dataclass(frozen=True)
class Transfers:
    """Requests to one hub on behalf of one caller; `cancelled` ends them. `seconds` is the time-out of each read."""

    headers: Mapping[str, str]
    seconds: float
    cancelled: Event = field(default_factory=Event)

    def read(self, url: str, limit: int) -> bytes:
        """The body at `url`, of at most `limit` bytes. Raises the library's and httpx2's errors, and the above."""
        return b"".join(self._body(url, limit))

    def save(self, url: str, target: Path, size: int) -> None:
        """Write the body at `url`, which has `size` bytes, to `target`. Raises as `read` does, and OSError."""
        for _ in range(RETRIES):
            with contextlib.suppress(httpx2.TransportError):  # a broken connection: from the beginning
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
            raise BadAnswer(f"{written} of {size} bytes")

    def _body(self, url: str, limit: int) -> Iterator[bytes]:
        headers = {**self.headers, "accept-encoding": "identity"}
        request = get_session().stream("GET", url, headers=headers, timeout=self.seconds, follow_redirects=True)
        with request as response:
            _check_status(response)
            total = 0
            for piece in _decoded(response, self._in_time(response.iter_raw())):
                total += len(piece)
                if total > limit:
                    raise BadAnswer(f"more than {limit} bytes")
                yield piece

    def _in_time(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
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
    """Raise the library's error for a failed response; of its body, no more than MAX_ERROR_BYTES are read."""
    if response.status_code < 400:
        return
    body = b""
    for piece in response.iter_raw(chunk_size=MAX_ERROR_BYTES):
        body = piece
        break
    kept = {k: v for k, v in response.headers.items() if k.lower() not in ("content-encoding", "content-length")}
    hf_raise_for_status(httpx2.Response(response.status_code, headers=kept, content=body, request=response.request))


def _decoded(response: httpx2.Response, raw: Iterator[bytes]) -> Iterator[bytes]:
    """`raw` without its compression, in pieces of at most PIECE_BYTES where it had one."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        yield from raw
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadAnswer(f"content-encoding {encoding}")
    inflater = zlib.decompressobj(wbits=47)  # gzip or zlib, whichever it is
    try:
        for data in raw:
            while data:
                yield inflater.decompress(data, PIECE_BYTES)
                data = inflater.unconsumed_tail
        yield inflater.flush()
    except zlib.error as error:
        raise BadAnswer("damaged compression") from error
