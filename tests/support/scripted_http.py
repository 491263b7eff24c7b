"""A scripted HTTP/1.1 server on 127.0.0.1, for byte-exact tests of clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """An answer whose `pieces` are sent separately; without `chunked`, closing the connection ends it."""

    pieces: Sequence[bytes]
    status: int = 200
    content_type: str = "text/event-stream"
    chunked: bool = True
    whole: bool = True
    seconds: float = 0.0


@dataclass
class TinyServer:
    """Answers every request with `reply(its JSON body)`, and records the requests."""

    reply: Callable[[dict[str, Any]], Reply]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    running: int = 0
    most: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = next((int(x.split(":")[1]) for x in head.splitlines() if x.startswith("content-length")), 0)
        body = json.loads(await reader.readexactly(length) or b"{}")
        self.heads.append(head)
        self.bodies.append(body)
        self.running += 1
        self.most = max(self.most, self.running)
        reply = self.reply(body)
        encoding = "transfer-encoding: chunked" if reply.chunked else "connection: close"
        writer.write(f"HTTP/1.1 {reply.status} X\r\ncontent-type: {reply.content_type}\r\n{encoding}\r\n\r\n".encode())
        for piece in reply.pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if reply.chunked else piece)
            await writer.drain()
            await asyncio.sleep(reply.seconds)
        if reply.chunked and reply.whole:
            writer.write(b"0\r\n\r\n")
        self.running -= 1
        return reply.chunked and reply.whole


@asynccontextmanager
async def serving(reply: Callable[[dict[str, Any]], Reply]) -> AsyncIterator[TinyServer]:
    server = TinyServer(reply)
    async with await asyncio.start_server(server.serve, "127.0.0.1", 0) as listener:
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        yield server


def event(**data: object) -> bytes:
    """A server-sent event with JSON."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def text(piece: str) -> bytes:
    """An event of /v1/completions."""
    return event(choices=[{"index": 0, "text": piece, "logprobs": None}], usage=None)


USAGE = event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14})
DONE = b"data: [DONE]\n\n"
