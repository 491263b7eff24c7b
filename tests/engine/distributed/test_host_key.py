"""The hosts' secret: where it comes from, that it is not shown, and that only its holders get through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from support.host_groups import KEY, NEEDS_IPV6, OTHER_KEY, free_ports

from motet.core.errors import StartupError
from motet.engine.distributed.host_key import HostKey, bind
from motet.engine.distributed.transport import EngineSockets, WorkerSocket
from motet.engine.schedule.plan import InstallResult, Shutdown

Secure = Callable[["zmq.Socket[bytes]"], None]


def half_right(socket: zmq.Socket[bytes]) -> None:
    """Know the server's public key, but not the clients' key pair."""
    HostKey(KEY).secure_client(socket)
    socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


@pytest.fixture
def server() -> Iterator[tuple[str, zmq.Socket[bytes]]]:
    """A server with KEY: its address and its socket."""
    address = f"tcp://127.0.0.1:{free_ports()}"
    with zmq.Context() as context:
        authenticator = HostKey(KEY).authenticator(context)
        with context.socket(zmq.ROUTER) as socket:
            HostKey(KEY).secure_server(socket)
            bind(socket, address)
            yield address, socket
        authenticator.stop()


@pytest.mark.parametrize(
    ("secure", "heard"),
    [
        (HostKey(KEY).secure_client, True),
        (HostKey(OTHER_KEY).secure_client, False),
        (half_right, False),
        (lambda socket: None, False),
    ],
    ids=["key", "other key", "server key only", "no key"],
)
def test_a_peer_without_the_key_gets_nothing(
    server: tuple[str, zmq.Socket[bytes]], secure: Secure, heard: bool
) -> None:
    address, socket = server
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.linger = 0
        secure(client)
        client.connect(address)
        client.send(b"hello")
        assert bool(socket.poll(5000 if heard else 500)) is heard
        if heard:
            socket.send_multipart([socket.recv_multipart()[0], b"answer"])
            assert client.recv() == b"answer"


def test_a_server_without_the_key_gets_nothing() -> None:
    """The other way round: a rank does not talk to a server that does not know the secret."""
    address = f"tcp://127.0.0.1:{free_ports()}"
    with zmq.Context() as context, context.socket(zmq.ROUTER) as impostor, context.socket(zmq.DEALER) as client:
        client.linger = 0
        impostor.curve_server = True
        impostor.curve_publickey, impostor.curve_secretkey = zmq.curve_keypair()
        impostor.bind(address)
        HostKey(KEY).secure_client(client)
        client.connect(address)
        client.send(b"hello")
        assert not impostor.poll(500)


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=NEEDS_IPV6)])
def test_ranks_of_both_kinds_reach_rank_0_with_the_key_only(host: str, tmp_path: Path) -> None:
    local, address = f"ipc://{tmp_path}/ranks", f"tcp://{host}:{free_ports()}"
    key, stranger = HostKey(KEY), HostKey(OTHER_KEY)
    others = [WorkerSocket(local, 3, stranger), WorkerSocket(address, 4), WorkerSocket(address, 5, stranger)]
    ranks = [WorkerSocket(local, 1, key), WorkerSocket(address, 2, key)]
    sockets = EngineSockets(f"ipc://{tmp_path}/engine", local, 2, (address, key))
    sockets.broadcast(Shutdown())
    assert [rank.receive(5000) for rank in ranks] == [Shutdown()] * 2
    assert [other.receive(100) for other in others] == [None] * 3
    ranks[1].report(InstallResult(2, 0, "f"))
    sockets.wait(5000)
    assert [result.tp_rank for result in sockets.from_ranks()] == [2]
    for socket in (*others, *ranks, sockets):
        socket._context.setsockopt(zmq.LINGER, 0)
        socket.close()


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "host.key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o640)
    with pytest.raises(StartupError, match=r"chmod 600") as caught:
        HostKey.load(str(file), {})
    assert KEY not in str(caught.value)
    file.chmod(0o600)
    assert HostKey.load(str(file), {"MOTET_HOST_KEY": OTHER_KEY}).text == KEY


@pytest.mark.parametrize(
    ("file", "variable", "message"),
    [
        ("", "", "--host-key-file or MOTET_HOST_KEY"),
        ("", KEY[:31], "31 characters; it must have at least 32"),
        ("/nowhere/key", KEY, "/nowhere/key cannot be read"),
    ],
)
def test_an_unusable_key_is_refused_without_showing_it(file: str, variable: str, message: str) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        HostKey.load(file, {"MOTET_HOST_KEY": variable})
    assert KEY[:31] not in str(caught.value)


def test_the_secret_is_in_no_representation() -> None:
    assert KEY not in f"{HostKey(KEY)} {HostKey(KEY)!r}"
