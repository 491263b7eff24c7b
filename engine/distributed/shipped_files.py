"""Adapter files for hosts that do not share the first host's disk: a rank fetches its file and keeps it.

    CACHE/shipped/DIGEST.safetensors

The rules are those of prepared files: written atomically, checked against the digest, and removed, least recently used
first, over --cache-size.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec
import zmq
from loguru import logger

from motet.core.digests import DIGEST_BYTES, file_digest
from motet.core.disk_space import cache_limit
from motet.core.errors import StartupError
from motet.engine.distributed.host_key import HostKey, bind

FOLDER = "shipped"

CHUNK_BYTES = 4 << 20
"""The most that one message carries."""

HEADER_BYTES = 16 << 20
"""Room for a file's header, in addition to its tensors."""

ANSWER_SECONDS = 10.0
"""How long the first host may take to answer; then the adapter's requests fail, and the next one tries again."""

LEFTOVER_SECONDS = 3600.0
POLL_MILLISECONDS = 200

_PREPARED = re.compile(r"(prepared|merged)/[0-9a-f]{32}/[0-9]+\.safetensors")


class FetchFile(msgspec.Struct, frozen=True, tag=True):
    """Ask the first host for CHUNK_BYTES of its prepared file `path`, from `offset` on. It answers with FileChunk."""

    path: str
    offset: int


class DamagedFile(msgspec.Struct, frozen=True, tag=True):
    """Report that the content of `path` does not have `digest`. If so, the first host removes it. Without an answer."""

    path: str
    digest: str


class FileChunk(msgspec.Struct, frozen=True, tag=True):
    """Part of a file of `size` bytes; with `error`, the file cannot be read."""

    path: str
    offset: int
    size: int
    data: bytes
    error: str = ""


ToFileServer: TypeAlias = FetchFile | DamagedFile

_decode = msgspec.msgpack.Decoder(FileChunk).decode
_decode_request = msgspec.msgpack.Decoder(ToFileServer).decode


class ShippedFiles:
    """One rank's access to adapter files; used by its installer's thread only."""

    def __init__(self, address: str, key: HostKey, cache: Path, limit: int | None) -> None:
        """The first host's file server, and the cache with its size limit in bytes (None: as for --cache-size auto)."""
        self._address, self._key, self._limit = address, key, limit
        self._folder = cache / FOLDER

    def locate(self, path: Path, digest: str, max_bytes: int) -> Path:
        """The file on this host with that digest: `path` itself on a shared disk, the cached copy, or a new one.

        Raises ValueError for content that is damaged, or of more than `max_bytes`; OSError; TimeoutError.
        """
        if path.is_file():
            return path
        kept = self._folder / f"{digest}.safetensors"
        if kept.is_file():
            os.utime(kept)  # its last use
            return kept
        self._fetch(path, digest, kept, max_bytes)
        return kept

    def _fetch(self, path: Path, digest: str, target: Path, max_bytes: int) -> None:
        """Fetch `path` into the new file `target`."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(prefix=".", dir=self._folder)
        try:
            with open(descriptor, "wb") as file, self._connected() as socket:
                found = _receive(socket, path, file, max_bytes)
                if found != digest:
                    socket.send(msgspec.msgpack.encode(DamagedFile(str(path), digest)))
                    raise ValueError(f"{path} is damaged on the first host")
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
        size = target.stat().st_size
        logger.bind(bytes=size).info("fetched {} from the first host", path.name)
        self._trim(target)

    @contextmanager
    def _connected(self) -> Iterator[zmq.Socket[bytes]]:
        with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
            socket.linger = 500
            socket.ipv6 = "[" in self._address
            self._key.secure_client(socket)
            socket.connect(self._address)
            yield socket

    def _trim(self, newest: Path) -> None:
        """Remove the least recently used files over the limit, and what killed processes have left."""
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # removed by another rank
                state = path.stat()
                if path.name.startswith(".") and time.time() - state.st_mtime > LEFTOVER_SECONDS:
                    path.unlink()
                elif not path.name.startswith("."):
                    files.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in files)
        limit = cache_limit(self._limit, self._folder, total)
        for _, size, path in sorted(files):
            if total > limit and path != newest:
                path.unlink(missing_ok=True)
                total -= size


def _receive(socket: zmq.Socket[bytes], path: Path, file: BinaryIO, max_bytes: int) -> str:
    """Write the first host's `path` to `file`; returns the digest of its content."""
    content = hashlib.blake2b(digest_size=DIGEST_BYTES)
    offset, size = 0, 1
    while offset < size:
        socket.send(msgspec.msgpack.encode(FetchFile(str(path), offset)))
        if not socket.poll(int(1000 * ANSWER_SECONDS)):
            raise TimeoutError(f"the first host has not sent {path.name} within {ANSWER_SECONDS:g} s")
        chunk = _decode(socket.recv())
        if chunk.error:
            raise FileNotFoundError(f"the first host cannot read {path}: {chunk.error}")
        size = chunk.size
        if size > max_bytes:
            raise ValueError(f"{path} has {size} bytes; the limit is {max_bytes}")
        if chunk.offset != offset or not 0 < len(chunk.data) <= min(CHUNK_BYTES, size - offset):
            raise ValueError(f"{path} has changed on the first host")
        content.update(chunk.data)
        file.write(chunk.data)
        offset += len(chunk.data)
    return content.hexdigest()


class FileServer:
    """The first host's side: sends prepared files to peers with the key, in a thread of its own."""

    def __init__(self, address: str, key: HostKey, cache: Path) -> None:
        """Raises StartupError if `address` is in use."""
        self._cache = cache.resolve()
        self._context = zmq.Context()
        self._authenticator = key.authenticator(self._context)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        key.secure_server(self._socket)
        try:
            bind(self._socket, address)
        except StartupError:
            self._authenticator.stop()
            self._context.destroy()
            raise
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="file-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._closing.set()
        self._thread.join()
        self._authenticator.stop()
        self._context.destroy()

    def _serve(self) -> None:
        while not self._closing.is_set():
            if not self._socket.poll(POLL_MILLISECONDS):
                continue
            client, *body = self._socket.recv_multipart()
            try:
                request = _decode_request(b"".join(body))
            except msgspec.MsgspecError:
                continue
            if isinstance(request, FetchFile):
                self._socket.send_multipart([client, msgspec.msgpack.encode(self._chunk(request))])
            else:
                self._check(request)

    def _chunk(self, request: FetchFile) -> FileChunk:
        try:
            with self._prepared(request.path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, request.offset))
                return FileChunk(request.path, request.offset, size, file.read(CHUNK_BYTES))
        except OSError as error:
            return FileChunk(request.path, request.offset, 0, b"", type(error).__name__)

    def _check(self, report: DamagedFile) -> None:
        """Remove a damaged file, so that the next request has it prepared again."""
        with suppress(OSError):
            path = self._prepared(report.path)
            if file_digest(path) != report.digest:
                logger.warning("{} is damaged; removing it", path)
                path.unlink()

    def _prepared(self, name: str) -> Path:
        """The path of a prepared file of the cache. Raises FileNotFoundError for any other path."""
        path = Path(name).resolve()
        if not path.is_relative_to(self._cache) or not _PREPARED.fullmatch(path.relative_to(self._cache).as_posix()):
            raise FileNotFoundError(name)
        return path
