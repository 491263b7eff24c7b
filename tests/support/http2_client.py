"""An HTTP/2 client with which a test sends single frames."""

from __future__ import annotations

import asyncio

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded


class Http2Client:
    """One connection; `flush` sends the frames. Call `h2.initiate_connection()` first, or upgrade."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self._reader, self._writer = reader, writer

    async def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())
        await self._writer.drain()

    async def until(self, kind: type[Event]) -> list[Event]:
        """The events up to the first of class `kind`, or until the server closes the connection."""
        seen: list[Event] = []
        while not any(isinstance(event, kind) for event in seen):
            data = await asyncio.wait_for(self._reader.read(1 << 16), 5)
            if not data:
                break
            seen += self.h2.receive_data(data)
        return seen

    async def answer(self) -> tuple[dict[str, str], bytes]:
        """The headers and the body of the next response."""
        events = await self.until(StreamEnded)
        headers = next(dict(event.headers) for event in events if isinstance(event, ResponseReceived))
        return headers, b"".join(event.data for event in events if isinstance(event, DataReceived))

    def close(self) -> None:
        self._writer.close()
