"""The ZeroMQ sockets of the ranks: rank 0 with the clients and with the other ranks. Messages are msgpack."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import zmq

from motet.core.messages import FromEngine, ToEngine
from motet.engine.distributed.host_key import HostKey, bind
from motet.engine.schedule.plan import InstallResult, Shutdown, ToRank

_to_engine = msgspec.msgpack.Decoder(ToEngine)
_to_rank = msgspec.msgpack.Decoder(ToRank)
_install_result = msgspec.msgpack.Decoder(InstallResult)


class EngineSockets:
    """Rank 0's sockets: a ROUTER for the clients, and one for the other ranks."""

    def __init__(
        self, engine_address: str, ranks_address: str, other_ranks: int, hosts: tuple[str, HostKey] | None = None
    ) -> None:
        """Returns once all other ranks have loaded the model.

        `hosts` is the tcp address for the ranks of other hosts, and the key that every rank must have then.
        """
        self._context = zmq.Context()
        self._clients = self._context.socket(zmq.ROUTER)
        self._clients.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._clients.setsockopt(zmq.SNDHWM, 0)
        self._clients.bind(engine_address)
        self._ranks = self._context.socket(zmq.ROUTER)
        self._authenticator = None
        if hosts is not None:
            address, key = hosts
            self._authenticator = key.authenticator(self._context)
            key.secure_server(self._ranks)
            # A rank whose connection breaks would miss plans: fail then, so that the engine starts again.
            self._ranks.setsockopt(zmq.ROUTER_MANDATORY, 1)
            self._ranks.setsockopt(zmq.SNDHWM, 0)
            bind(self._ranks, address)
        self._ranks.bind(ranks_address)
        self._identities: list[bytes] = []
        while len(self._identities) < other_ranks:  # each sends an empty message once its model is loaded
            self._identities.append(self._ranks.recv_multipart()[0])
        self._poller = zmq.Poller()
        self._poller.register(self._clients, zmq.POLLIN)
        self._poller.register(self._ranks, zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()

    def wait(self, milliseconds: int) -> None:
        """Return when a message has arrived, or after `milliseconds`."""
        self._poller.poll(milliseconds)

    def from_clients(self) -> Iterator[tuple[bytes, ToEngine]]:
        """The messages that have arrived from clients, each with the client's identity."""
        while self._clients.poll(0):
            client, body = self._clients.recv_multipart()
            yield client, _to_engine.decode(body)

    def from_ranks(self) -> Iterator[InstallResult]:
        """The messages that have arrived from the other ranks."""
        while self._ranks.poll(0):
            yield _install_result.decode(self._ranks.recv_multipart()[1])

    def send(self, client: bytes, message: FromEngine) -> bool:
        """Send to a client; False if it is gone."""
        try:
            self._clients.send_multipart([client, self._encoder.encode(message)])
        except zmq.ZMQError:
            return False
        return True

    def broadcast(self, message: ToRank) -> None:
        """Send to every other rank. Raises ZMQError if a rank on another host cannot be reached."""
        body = self._encoder.encode(message)
        for identity in self._identities:
            try:
                self._ranks.send_multipart([identity, body])
            except zmq.ZMQError:
                if not isinstance(message, Shutdown):
                    raise

    def close(self) -> None:
        """Close both sockets; waits a moment for messages that are still being sent."""
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(linger=500)


class WorkerSocket:
    """The socket of another rank."""

    def __init__(self, ranks_address: str, tp_rank: int, key: HostKey | None = None) -> None:
        """Connect, with the key of an engine on several hosts, and report to rank 0 that the model is loaded."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.IDENTITY, f"rank-{tp_rank}".encode())
        if key is not None:
            self._socket.ipv6 = "[" in ranks_address
            key.secure_client(self._socket)
        self._socket.connect(ranks_address)
        self._socket.send(b"")

    def receive(self, milliseconds: int) -> ToRank | None:
        """The next message, or None if none arrives in time."""
        return _to_rank.decode(self._socket.recv()) if self._socket.poll(milliseconds) else None

    def report(self, message: InstallResult) -> None:
        """Send a result to rank 0."""
        self._socket.send(msgspec.msgpack.encode(message))

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=500)
