"""Which callers a source has granted which adapters, kept for a limited time, also on disk for public adapters.

    no grant           ask the source, and wait
    a fresh grant      no question
    an older grant     ask again; if the source is slow or fails, go on with the grant for up to `stale_seconds`
    a refusal          ends the grant at once

A grant belongs to one caller's token, unless the adapter was readable without any. Tokens are kept as keyed digests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import msgspec

from motet.api.adapters.disk_cache import copy_directory
from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.load_log import load_stage
from motet.api.adapters.shared_work import SingleFlight
from motet.api.adapters.source_calls import call_source, check_result, presentable
from motet.core.adapter_source import AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import MotetError, NotFound, Overloaded, SourceOffline
from motet.core.paths import read_regular, write_file

Key: TypeAlias = tuple[AdapterRef, bytes]  # and the digest of the caller's token, b"" for none
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_RESOLVING = 256

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@dataclass
class Grant:
    """A source's answer. `public`: given to a caller without a token. A `lasting` one never expires."""

    resolved: ResolvedAdapter
    at: float
    public: bool = False
    lasting: bool = False
    ask_after: float = 0.0


class Authorisations:
    """The grants of one source. `clock` is in seconds, and never goes back."""

    def __init__(
        self,
        source: AdapterSource,
        limits: LoadLimits,
        records: PublicRecords,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._limits, self._records, self._clock = source, limits, records, clock
        self._fresh_seconds = 0.0 if source.local_files else limits.authorisation_seconds
        self._unknown_seconds = 0.0 if source.local_files else limits.unknown_seconds
        self._secret = secrets.token_bytes(32)
        self._grants: OrderedDict[Key, Grant] = OrderedDict()
        self._unknown: OrderedDict[Key, tuple[float, NotFound]] = OrderedDict()
        self._asking: SingleFlight[Key, Grant] = SingleFlight(MAX_RESOLVING)

    async def authorise(self, ref: AdapterRef, token: str | None) -> Grant:
        """What `ref` is for the caller with `token`. Raises the source's refusal, or its outage if nothing is known."""
        key = (ref, self._digest(token))
        grant = self._known(key) or await self._recorded_commit(key)
        now = self._clock()
        if grant is not None and (grant.lasting or now - grant.at < self._fresh_seconds):
            return grant
        if grant is not None and now - grant.at < max(self._limits.stale_seconds, self._fresh_seconds):
            return await self._refreshed(key, token, grant)
        self._check_unknown(key)
        try:
            return await self._ask(key, token)
        except MotetError as error:
            if not _is_outage(error) or (grant := await self._recorded(key)) is None:
                raise
            return grant

    def end(self, ref: AdapterRef, token: str | None) -> None:
        """Ask the source again for the caller's next request: what it granted could not be fetched."""
        for key in (ref, self._digest(token)), (ref, b""):
            self._grants.pop(key, None)

    async def close(self) -> None:
        """Give up every question."""
        await self._asking.close()

    def _digest(self, token: str | None) -> bytes:
        return hashlib.blake2b(token.encode(errors="replace"), key=self._secret).digest() if token else b""

    def _known(self, key: Key) -> Grant | None:
        """Return the caller's own grant, or a public one."""
        if (own := self._grants.get(key)) is not None:
            self._grants.move_to_end(key)
            return own
        shared = self._grants.get((key[0], b""))
        return shared if shared is not None and shared.public else None

    async def _refreshed(self, key: Key, token: str | None, grant: Grant) -> Grant:
        """A new grant if the source answers soon, else `grant`; the question then goes on in the background."""
        if self._clock() < grant.ask_after or (grant.ask_after and key in self._asking):
            return grant
        try:
            async with asyncio.timeout(self._limits.refresh_wait_seconds):
                return await self._ask(key, token)
        except TimeoutError:
            pass
        except MotetError as error:
            if not _is_outage(error):
                raise
            if self._source.local_files:  # a file that is being replaced: it may be back for the next request
                return grant
        grant.ask_after = self._clock() + self._limits.retry_seconds
        return grant

    async def _ask(self, key: Key, token: str | None) -> Grant:
        return await self._asking.run(key, lambda: self._ask_source(key, token))

    async def _ask_source(self, key: Key, token: str | None) -> Grant:
        ref = key[0]
        try:
            with load_stage("resolve", ref.source, str(ref)):
                found = await call_source(
                    self._source, ref, token, self._limits.resolve_seconds, lambda: self._source.resolve(ref, token)
                )
        except MotetError as error:
            if not _is_outage(error):
                self._refused(key, error)
            raise
        check_result(self._source, "resolve", found, ResolvedAdapter)
        public = not token and not found.used_credentials
        grant = Grant(ResolvedAdapter(ref, found.revision), self._clock(), public, public and _pinned(found, ref))
        self._keep(self._grants, key, grant)
        self._unknown.pop(key, None)
        return grant

    def _refused(self, key: Key, error: MotetError) -> None:
        self._grants.pop(key, None)
        if not key[1]:
            self._records.forget(key[0])  # one small file: not in a thread, during which others would join this answer
        if isinstance(error, NotFound) and self._unknown_seconds > 0:
            self._keep(self._unknown, key, (self._clock() + self._unknown_seconds, error))

    def _check_unknown(self, key: Key) -> None:
        """Raise the NotFound that this caller got for this name a moment ago."""
        if (found := self._unknown.get(key)) is not None:
            until, error = found
            if self._clock() < until:
                raise presentable(error)
            del self._unknown[key]

    async def _recorded_commit(self, key: Key) -> Grant | None:
        """A lasting grant for a commit whose files are on disk and were readable without a token."""
        if self._source.local_files or not _COMMIT.fullmatch(key[0].revision or ""):
            return None
        return await self._recorded(key)

    async def _recorded(self, key: Key) -> Grant | None:
        """A grant for what is on disk and was readable without a token, before this process started perhaps."""
        ref, now = key[0], self._clock()
        revision = await asyncio.to_thread(self._records.find, ref)
        if revision is None:
            return None
        resolved = ResolvedAdapter(ref, revision)
        grant = Grant(
            resolved, now - self._fresh_seconds, True, _pinned(resolved, ref), now + self._limits.retry_seconds
        )
        self._keep(self._grants, (ref, b""), grant)
        return grant

    def _keep(self, kept: OrderedDict[K, V], key: K, value: V) -> None:
        kept[key] = value
        kept.move_to_end(key)
        if len(kept) > self._limits.authorisations:
            kept.popitem(last=False)


def _is_outage(error: MotetError) -> bool:
    """Whether the source failed, which says nothing about the caller."""
    return error.status >= 500 or isinstance(error, (Overloaded, SourceOffline))


def _pinned(found: ResolvedAdapter, ref: AdapterRef) -> bool:
    """Whether `ref` names its commit in full, so that it can never mean other files."""
    return found.revision == ref.revision and _COMMIT.fullmatch(found.revision) is not None


MAX_RECORDS = 10_000
MAX_BYTES = 4096


class PublicRecord(msgspec.Struct, frozen=True):
    """`ref` meant `revision` when its source last said so to a caller without a token."""

    ref: AdapterRef
    revision: str


class PublicRecords:
    """The records of one cache directory. Methods block; none raises for a cache that cannot be read or written."""

    def __init__(self, cache: Path) -> None:
        self._adapters = cache / "adapters"
        self._directory = cache / "authorisations"
        self._noted: OrderedDict[AdapterRef, str] = OrderedDict()
        self._sweep()

    def is_noted(self, ref: AdapterRef, revision: str) -> bool:
        """Whether this process has written just this record."""
        return self._noted.get(ref) == revision

    def note(self, ref: AdapterRef, revision: str) -> None:
        """Record that `ref` is public, and that it is `revision` now, which is in the cache."""
        with contextlib.suppress(OSError):
            for named in {ref, AdapterRef(ref.source, ref.id, revision)}:
                write_file(self._file(named), msgspec.json.encode(PublicRecord(named, revision)))
            self._noted[ref] = revision
            if len(self._noted) > MAX_RECORDS:
                self._noted.popitem(last=False)

    def find(self, ref: AdapterRef) -> str | None:
        """Return the public revision of `ref` that is in the cache."""
        record = _read(self._file(ref))
        if record is None or record.ref != ref or not self._is_on_disk(record):
            return None
        return record.revision

    def forget(self, ref: AdapterRef) -> None:
        """`ref` is not, or no longer, readable without a token."""
        self._noted.pop(ref, None)
        with contextlib.suppress(OSError):
            self._file(ref).unlink(missing_ok=True)

    def _file(self, ref: AdapterRef) -> Path:
        name = "\0".join((ref.source, ref.id, ref.revision or ""))
        return self._directory / f"{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:32]}.json"

    def _is_on_disk(self, record: PublicRecord) -> bool:
        return copy_directory(self._adapters, record.ref, record.revision).is_dir()

    def _sweep(self) -> None:
        """Remove the records whose files are gone, and the oldest where there are too many."""
        with contextlib.suppress(OSError):
            files = sorted(self._directory.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
            for number, file in enumerate(files):
                record = _read(file)
                if number >= MAX_RECORDS or record is None or not self._is_on_disk(record):
                    file.unlink(missing_ok=True)


def _read(file: Path) -> PublicRecord | None:
    """The record in `file`; None for a file that is absent or damaged."""
    try:
        return msgspec.json.decode(read_regular(file, MAX_BYTES), type=PublicRecord)
    except (OSError, ValueError):
        return None
