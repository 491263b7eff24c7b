"""API keys. The key file has one per line: a name, the key's SHA-256 (never the key) and an optional mark.

# name    sha256 of the key                                                    mark
alice     9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
ops       60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752     admin
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from loguru import logger

from motet.core.errors import StartupError

PREFIX = "sk-motet-"
CHECK_SECONDS = 1.0
MAX_FILE_BYTES = 16 << 20

_LINE = re.compile(r"(?P<name>[A-Za-z0-9_.@-]{1,64})\s+(?:sha256:)?(?P<digest>[0-9a-fA-F]{64})(?:\s+(?P<mark>admin))?")


@dataclass(frozen=True)
class ApiKey:
    """A key's name and digest, and whether it has admin rights."""

    name: str
    digest: bytes
    admin: bool


def new_key() -> str:
    """A new random key; with 256 bits, its plain hash needs no salt."""
    return PREFIX + secrets.token_urlsafe(32)


def key_line(name: str, key: str, admin: bool) -> str:
    """The key's line for the key file. Raises StartupError for an invalid name."""
    line = f"{name} {_digest(key).hex()}" + (" admin" if admin else "")
    if not _LINE.fullmatch(line):
        raise StartupError(
            f"{name!r} is not a valid key name: use 1 to 64 letters, digits, or any of _.@-", param="name"
        )
    return line


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in a file. Raises StartupError naming the line at fault."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise StartupError(f"--api-keys: {path} is larger than {MAX_FILE_BYTES} bytes", param="api_keys")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StartupError(f"--api-keys: {path} cannot be read: {reason}", param="api_keys") from error
    keys: list[ApiKey] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            # Do not quote the line: it may contain a key.
            raise StartupError(
                f"--api-keys: {path}, line {number}: expected a name, the key's sha256 in hex, and optionally `admin`; "
                "`motet key NAME` makes one",
                param="api_keys",
            )
        keys.append(ApiKey(match["name"], bytes.fromhex(match["digest"]), match["mark"] is not None))
    if not keys:
        raise StartupError(f"--api-keys: {path} contains no keys; `motet key NAME` makes one", param="api_keys")
    return keys


class KeyRing:
    """The keys of a file, reloaded when it changes; an invalid new version is ignored."""

    def __init__(self, path: Path) -> None:
        """Raises StartupError if the file is missing or invalid."""
        self._path = path
        self._version = self._stamp()  # before reading, so that a change during the read is noticed
        self._keys = read_keys(path)
        self._checked = time.monotonic()

    def find(self, key: str) -> ApiKey | None:
        """The entry of `key`, or None if it is unknown. The time it takes does not depend on the key."""
        self._refresh()
        digest = _digest(key)
        match = None
        for entry in self._keys:
            if hmac.compare_digest(entry.digest, digest):
                match = entry
        return match

    def _refresh(self) -> None:
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        version = self._stamp()
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = read_keys(self._path)
        except StartupError as error:
            logger.warning("{}; keeping the previous keys", error.message)
        else:
            logger.info("{} API keys read from {}", len(self._keys), self._path)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            state = self._path.stat()
        except OSError:
            return None
        return state.st_mtime_ns, state.st_size, state.st_ino


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()
