"""Refuses WebSocket handshakes with a 426, over HTTP/1.1 and HTTP/2, before routing: no route accepts them."""

from __future__ import annotations

from hypercorn.protocol.events import Body, EndBody, Event, Request, Response, StreamClosed
from hypercorn.protocol.ws_stream import WSStream
from loguru import logger

from motet.api.http.auth import request_id
from motet.api.schema.openai_objects import ENCODER, error_body
from motet.core.errors import UpgradeRequired

MAX_LOGGED_PATH = 200
REFUSAL = UpgradeRequired("this server does not accept WebSockets; send the request over HTTP")


class RefusedWebSocket(WSStream):
    """Hypercorn's WebSocket stream, which refuses each handshake, well-formed or not.

    Clients that support both protocols, such as Codex, switch to HTTP after a 426.
    """

    @property
    def idle(self) -> bool:
        """Whether the refusal has been sent."""
        return self.closed

    async def handle(self, event: Event) -> None:
        """Refuse the handshake; frames that the client sent with it are dropped."""
        if isinstance(event, Request):
            # In a separate task: a client that reads slowly must not block reading from this connection.
            self.task_group.spawn(self._refuse, event)
        elif isinstance(event, StreamClosed):
            self.closed = True

    async def _refuse(self, handshake: Request) -> None:
        logger.debug("WebSocket handshake refused on {!r}", handshake.raw_path[:MAX_LOGGED_PATH])
        body = ENCODER.encode(error_body(REFUSAL.info()))
        sent = dict(handshake.headers).get(b"x-request-id", b"").decode("latin-1")
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id(sent).encode()),
        ]
        if handshake.http_version == "1.1":  # HTTP/2 forbids both headers
            headers += [(b"upgrade", b"HTTP/1.1"), (b"connection", b"upgrade, close")]
        await self.send(Response(self.stream_id, headers, REFUSAL.status))
        await self.send(Body(self.stream_id, body))
        await self.send(EndBody(self.stream_id))
        await self.send(StreamClosed(self.stream_id))
