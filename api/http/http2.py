"""HTTP/2: limits stream resets (CVE-2023-44487, "rapid reset"), and closes streams whose clients do not read.

A stream that was reset counts towards no limit of open streams, although its request caused work.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from contextlib import suppress

from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, PriorityUpdated, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as IOEvent
from hypercorn.protocol.events import Body, EndBody
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import H2Protocol

from motet.api.http import slow_readers

RESET_BURST = 200
RESETS_PER_SECOND = 20.0
"""Resets allowed per connection: a burst of twice the streams that it can have open, then this many per second."""

TURN_BYTES = 4096
"""Bytes handled at a time per connection; they can contain about 150 complete requests."""


class Http2Connection(H2Protocol):
    """Hypercorn's HTTP/2 connection with limits. It ignores priorities, which RFC 9113 removed."""

    _ended = False
    _resets = 0.0
    _counted_at = 0.0

    async def initiate(self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None) -> None:
        """Start, after an upgrade from HTTP/1.1 if there are `headers`; close if HTTP2-Settings is malformed."""
        try:
            # A setting has six bytes; for other lengths, h2 raises errors of another package.
            if len(base64.urlsafe_b64decode(settings or b"")) % 6:
                raise ProtocolError("malformed HTTP2-Settings")
            await super().initiate(headers, settings)
        except (ValueError, ProtocolError):
            await self.send(Closed())

    async def handle(self, event: IOEvent) -> None:
        """Handle received data in pieces, so that other connections are served between them."""
        if not isinstance(event, RawData):
            return await super().handle(event)
        for start in range(0, len(event.data), TURN_BYTES):
            if self._ended:
                return None
            await super().handle(RawData(event.data[start : start + TURN_BYTES]))
            await asyncio.sleep(0)
        return None

    async def stream_send(self, event: StreamEvent) -> None:
        """Send; if the client grants no flow-control window in time, reset the stream, which ends its request."""
        if not isinstance(event, Body | EndBody):
            return await super().stream_send(event)
        stream = event.stream_id

        def unsent() -> int:
            buffer = self.stream_buffers.get(stream)
            return len(buffer.buffer) if buffer else 0

        try:
            async with slow_readers.send_timeout(unsent):
                await super().stream_send(event)
        except TimeoutError:
            with suppress(ProtocolError):
                self.connection.reset_stream(stream, ErrorCodes.CANCEL)
            await self._flush()
            await self._close_stream(stream)
            await self._window_updated(stream)  # drops its data, as for a stream that the client resets
        return None

    async def _handle_events(self, events: Sequence[Event]) -> None:
        reset = {event.stream_id for event in events if isinstance(event, StreamReset)}
        if self._exceeds_reset_limit(len(reset)):
            self._ended = True
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            await self._flush()
            await self.send(Closed())
            return
        cancelled = reset & {event.stream_id for event in events if isinstance(event, RequestReceived)}
        for event in events:
            stream = getattr(event, "stream_id", None)
            if isinstance(event, DataReceived) and (stream in cancelled or stream not in self.streams):
                # Data of a request that was answered before all of it had arrived: Hypercorn would fail.
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif stream in cancelled or isinstance(event, PriorityUpdated):
                continue
            elif isinstance(event, RequestReceived) and not _has_ascii_target(event):
                self.connection.reset_stream(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            else:
                await super()._handle_events([event])
        await self._flush()

    def _exceeds_reset_limit(self, resets: int) -> bool:
        """Count `resets`; returns whether the connection exceeds its burst. The count decreases over time."""
        now = time.monotonic()
        self._resets = max(0.0, self._resets - (now - self._counted_at) * RESETS_PER_SECOND) + resets
        self._counted_at = now
        return self._resets > RESET_BURST


def _has_ascii_target(request: RequestReceived) -> bool:
    """Whether method and path exist and are ASCII; Hypercorn fails on others."""
    headers = dict(request.headers)
    return all(headers.get(name, b"\xff").isascii() for name in (b":method", b":path"))
