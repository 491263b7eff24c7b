"""Hypercorn's HTTP/1.1, but it announces that it closes a connection whose request it does not read to the end."""

from __future__ import annotations

from dataclasses import replace

from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol


class Http1Connection(H11Protocol):
    """One connection.

    An answer that needs no body, such as a 404, may be sent before the body has arrived. Hypercorn then closes the
    connection; a client that does not know this sends its next request on it, and sees a dropped connection.
    """

    async def stream_send(self, event: Event) -> None:
        """Send a part of an answer."""
        unread = repr(self.connection.their_state) == "SEND_BODY"  # h11's state, whose repr is its name
        if unread and isinstance(event, Response) and event.status_code >= 200:
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)
