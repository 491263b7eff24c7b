"""The secret that the hosts of an engine share, and the CURVE keys of their sockets, which are derived from it.

CURVE (https://rfc.zeromq.org/spec/26/) encrypts a ZeroMQ connection and authenticates both ends. The server's public
key is derived from the secret as well and is never sent, so that a peer without the secret cannot even shake hands.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from motet.core.errors import StartupError
from motet.core.settings import HOST_KEY_VARIABLE

MIN_CHARACTERS = 32
MAX_BYTES = 4096

_ZAP_DOMAIN = "hosts"

_HOW = "create one with `(umask 077; openssl rand -hex 32 > host.key)` and copy it to every host"


class HostKey:
    """The shared secret; `text` is for the environment of child processes only."""

    def __init__(self, text: str) -> None:
        """Raises StartupError, which does not contain the secret, if it is too short or CURVE is missing."""
        if len(text) < MIN_CHARACTERS:
            raise StartupError(
                f"the host key has {len(text)} characters; it must have at least {MIN_CHARACTERS}; {_HOW}",
                param="host_key_file",
            )
        if not zmq.has("curve"):
            raise StartupError("this build of ZeroMQ has no CURVE; install pyzmq from PyPI", param="nnodes")
        self.text = text
        self._server, self._client = _derived(text, b"motet server"), _derived(text, b"motet client")

    def __repr__(self) -> str:
        return "HostKey()"

    @classmethod
    def load(cls, file: str, environ: Mapping[str, str]) -> HostKey:
        """The key in `file`, else in MOTET_HOST_KEY. Raises StartupError."""
        if file:
            return cls(_read(Path(file)))
        text = environ.get("MOTET_HOST_KEY", "").strip()
        if not text:
            raise StartupError(
                f"several hosts need a shared secret: set --host-key-file or {HOST_KEY_VARIABLE}; {_HOW}",
                param="host_key_file",
            )
        return cls(text)

    @classmethod
    def inherited(cls) -> HostKey | None:
        """The key that the parent process has set for this rank; None for an engine on one host."""
        text = os.environ.get(HOST_KEY_VARIABLE)
        return cls(text) if text else None

    def secure_server(self, socket: zmq.Socket[bytes]) -> None:
        """Let `socket`, which is not bound yet, accept only peers with this key. Needs an `authenticator`."""
        socket.curve_server = True
        socket.curve_secretkey, socket.curve_publickey = self._server
        socket.zap_domain = _ZAP_DOMAIN.encode()

    def secure_client(self, socket: zmq.Socket[bytes]) -> None:
        """Let `socket`, which is not connected yet, talk only to a server with this key."""
        socket.curve_secretkey, socket.curve_publickey = self._client
        socket.curve_serverkey = self._server[1]

    def authenticator(self, context: zmq.Context[zmq.Socket[bytes]]) -> ThreadAuthenticator:
        """Start checking the clients' keys for all servers in `context`; call `stop` before the context ends."""
        authenticator = ThreadAuthenticator(context)
        authenticator.start()
        authenticator.configure_curve_callback(_ZAP_DOMAIN, credentials_provider=_OneClient(self._client[1]))
        return authenticator


class _OneClient:
    """Accepts the clients' common public key only."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._key


def bind(socket: zmq.Socket[bytes], address: str) -> None:
    """Listen on the tcp `address` of this host. Raises StartupError."""
    socket.ipv6 = "[" in address
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise StartupError(
            f"cannot listen on {address}: {error.strerror}; --master-addr must be an address of the first host itself, "
            "and four ports from --master-port on must be free",
            param="master_addr",
        ) from error


def _derived(text: str, purpose: bytes) -> tuple[bytes, bytes]:
    """The secret and the public key for `purpose`, both in Z85."""
    secret = z85.encode(hashlib.blake2b(text.encode(), digest_size=32, person=purpose).digest())
    return secret, zmq.curve_public(secret)


def _read(file: Path) -> str:
    """The secret in `file`, which only its owner may read. Raises StartupError."""
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise StartupError(
            f"--host-key-file {file} cannot be read: {error.strerror}; {_HOW}", param="host_key_file"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise StartupError(
            f"--host-key-file {file} may be read by other users (mode {stat.S_IMODE(mode):04o}); run chmod 600 {file}",
            param="host_key_file",
        )
    if len(data) > MAX_BYTES or not data.isascii():
        raise StartupError(
            f"--host-key-file {file} must be at most {MAX_BYTES} bytes of ASCII text; {_HOW}", param="host_key_file"
        )
    return data.decode().strip()
