"""The engine's sockets: clients and follower ranks on one side each, ZeroMQ with msgpack throughout."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import zmq

from motet.core.messages import FromEngine, ToEngine
from motet.engine.schedule.plan import InstallResult, ToRank

_to_engine = msgspec.msgpack.Decoder(ToEngine)
_to_rank = msgspec.msgpack.Decoder(ToRank)
_installed = msgspec.msgpack.Decoder(InstallResult)


class EngineSockets:
    """Rank 0's side: a ROUTER that clients connect to, and one that the other ranks connect to."""

    def __init__(self, engine_address: str, ranks_address: str, followers: int) -> None:
        self._context = zmq.Context()
        self._clients = self._context.socket(zmq.ROUTER)
        self._clients.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._clients.setsockopt(zmq.SNDHWM, 0)
        self._clients.bind(engine_address)
        self._ranks = self._context.socket(zmq.ROUTER)
        self._ranks.bind(ranks_address)
        self._names: list[bytes] = []
        while len(self._names) < followers:  # each says hello with an empty message once its model is loaded
            self._names.append(self._ranks.recv_multipart()[0])
        self._poller = zmq.Poller()
        self._poller.register(self._clients, zmq.POLLIN)
        self._poller.register(self._ranks, zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()

    def wait(self, milliseconds: int) -> None:
        """Return when something has arrived, or after `milliseconds`."""
        self._poller.poll(milliseconds)

    def from_clients(self) -> Iterator[tuple[bytes, ToEngine]]:
        """What clients have sent, each with the client's identity."""
        while self._clients.poll(0):
            client, body = self._clients.recv_multipart()
            yield client, _to_engine.decode(body)

    def from_ranks(self) -> Iterator[InstallResult]:
        """What the other ranks have reported."""
        while self._ranks.poll(0):
            yield _installed.decode(self._ranks.recv_multipart()[1])

    def send(self, client: bytes, message: FromEngine) -> bool:
        """Send to one client; False if it is gone."""
        try:
            self._clients.send_multipart([client, self._encoder.encode(message)])
        except zmq.ZMQError:
            return False
        return True

    def broadcast(self, message: ToRank) -> None:
        """Send to every other rank."""
        body = self._encoder.encode(message)
        for name in self._names:
            self._ranks.send_multipart([name, body])

    def close(self) -> None:
        """Close both sockets, giving what was sent a moment to leave."""
        self._context.destroy(linger=500)


class WorkerSocket:
    """Another rank's side."""

    def __init__(self, ranks_address: str, rank: int) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"rank-{rank}".encode())
        self._socket.connect(ranks_address)
        self._socket.send(b"")

    def receive(self, milliseconds: int) -> ToRank | None:
        """The next message, or None if none came in time."""
        return _to_rank.decode(self._socket.recv()) if self._socket.poll(milliseconds) else None

    def report(self, message: InstallResult) -> None:
        """Tell rank 0."""
        self._socket.send(msgspec.msgpack.encode(message))

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=500)
