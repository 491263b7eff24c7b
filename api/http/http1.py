"""HTTP/1.1: announces `connection: close` where the server closes a connection before it has read the whole body."""

from __future__ import annotations

from dataclasses import replace

from hypercorn.protocol.events import Event, Response
from hypercorn.protocol.h11 import H11Protocol


class Http1Connection(H11Protocol):
    """Hypercorn's HTTP/1.1 connection, which announces when it closes.

    A response such as a 404 may be sent before the request's body has arrived. Hypercorn then closes the connection.
    Without the header, the client sends its next request on it, and that fails.
    """

    async def stream_send(self, event: Event) -> None:
        """Send a part of a response."""
        unread = repr(self.connection.their_state) == "SEND_BODY"  # h11's state, whose repr is its name
        if unread and isinstance(event, Response) and event.status_code >= 200:
            event = replace(event, headers=[*event.headers, (b"connection", b"close")])
        await super().stream_send(event)
