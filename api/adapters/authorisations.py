"""Caches the grants of adapter sources for a limited time; those of public adapters also on disk.

    no grant           call the source and wait
    fresh grant        do not call the source
    older grant        call again; if the source is slow or fails, use the grant for up to `stale_seconds`
    refusal            ends the grant at once

A grant is valid for one caller's token, or for every caller if the adapter is public. Tokens are stored as keyed
digests.
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

Key: TypeAlias = tuple[AdapterRef, bytes]  # the reference, and the digest of the caller's token (b"" without a token)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MAX_RESOLVING = 256

_COMMIT = re.compile(r"[0-9a-f]{40,64}")


@dataclass
class Grant:
    """A grant by a source. `public`: valid without a token; `permanent`: never expires."""

    resolved: ResolvedAdapter
    granted_at: float
    public: bool = False
    permanent: bool = False
    retry_at: float = 0.0


class Authorisations:
    """The grants of one source. `clock` returns monotonic seconds."""

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
        self._resolving: SingleFlight[Key, Grant] = SingleFlight(MAX_RESOLVING)

    async def authorise(self, ref: AdapterRef, token: str | None) -> Grant:
        """The grant of `ref` for the caller with `token`. Raises a refusal, or an outage if there is no grant."""
        key = (ref, self._digest(token))
        grant = self._cached(key) or await self._recorded_commit(key)
        now = self._clock()
        if grant is not None and (grant.permanent or now - grant.granted_at < self._fresh_seconds):
            return grant
        if grant is not None and now - grant.granted_at < max(self._limits.stale_seconds, self._fresh_seconds):
            return await self._refreshed(key, token, grant)
        self._check_unknown(key)
        try:
            return await self._resolve(key, token)
        except MotetError as error:
            if not _is_outage(error) or (grant := await self._recorded(key)) is None:
                raise
            return grant

    def revoke(self, ref: AdapterRef, token: str | None) -> None:
        """End the grant of `ref`, because its files could not be fetched; the next request calls the source again."""
        for key in (ref, self._digest(token)), (ref, b""):
            self._grants.pop(key, None)

    async def close(self) -> None:
        """Cancel all calls of the source."""
        await self._resolving.close()

    def _digest(self, token: str | None) -> bytes:
        return hashlib.blake2b(token.encode(errors="replace"), key=self._secret).digest() if token else b""

    def _cached(self, key: Key) -> Grant | None:
        """The caller's grant, or else a public one."""
        if (grant := self._grants.get(key)) is not None:
            self._grants.move_to_end(key)
            return grant
        grant = self._grants.get((key[0], b""))
        return grant if grant is not None and grant.public else None

    async def _refreshed(self, key: Key, token: str | None, grant: Grant) -> Grant:
        """A new grant if the source responds soon, else `grant`; the call then continues in the background."""
        if self._clock() < grant.retry_at or (grant.retry_at and key in self._resolving):
            return grant
        try:
            async with asyncio.timeout(self._limits.refresh_wait_seconds):
                return await self._resolve(key, token)
        except TimeoutError:
            pass
        except MotetError as error:
            if not _is_outage(error):
                raise
            if self._source.local_files:  # the file may be in the middle of a replacement
                return grant
        grant.retry_at = self._clock() + self._limits.retry_seconds
        return grant

    async def _resolve(self, key: Key, token: str | None) -> Grant:
        return await self._resolving.run(key, lambda: self._call_source(key, token))

    async def _call_source(self, key: Key, token: str | None) -> Grant:
        ref = key[0]
        try:
            with load_stage("resolve", ref.source, str(ref)):
                resolved = await call_source(
                    self._source, ref, token, self._limits.resolve_seconds, lambda: self._source.resolve(ref, token)
                )
        except MotetError as error:
            if not _is_outage(error):
                self._record_refusal(key, error)
            raise
        check_result(self._source, "resolve", resolved, ResolvedAdapter)
        public = not token and not resolved.used_credentials
        permanent = public and _is_pinned(resolved, ref)
        grant = Grant(ResolvedAdapter(ref, resolved.revision), self._clock(), public, permanent)
        self._store(self._grants, key, grant)
        self._unknown.pop(key, None)
        return grant

    def _record_refusal(self, key: Key, error: MotetError) -> None:
        self._grants.pop(key, None)
        if not key[1]:
            self._records.forget(key[0])  # a small file; a thread would let other callers join this call meanwhile
        if isinstance(error, NotFound) and self._unknown_seconds > 0:
            self._store(self._unknown, key, (self._clock() + self._unknown_seconds, error))

    def _check_unknown(self, key: Key) -> None:
        """Raise the recent NotFound of this caller for this reference, if there is one."""
        if (entry := self._unknown.get(key)) is not None:
            until, error = entry
            if self._clock() < until:
                raise presentable(error)
            del self._unknown[key]

    async def _recorded_commit(self, key: Key) -> Grant | None:
        """A permanent grant for a commit that is on disk and public."""
        if self._source.local_files or not _COMMIT.fullmatch(key[0].revision or ""):
            return None
        return await self._recorded(key)

    async def _recorded(self, key: Key) -> Grant | None:
        """A grant for a public adapter on disk, which may have been recorded by an earlier process."""
        ref, now = key[0], self._clock()
        revision = await asyncio.to_thread(self._records.find, ref)
        if revision is None:
            return None
        resolved = ResolvedAdapter(ref, revision)
        grant = Grant(
            resolved, now - self._fresh_seconds, True, _is_pinned(resolved, ref), now + self._limits.retry_seconds
        )
        self._store(self._grants, (ref, b""), grant)
        return grant

    def _store(self, cache: OrderedDict[K, V], key: K, value: V) -> None:
        cache[key] = value
        cache.move_to_end(key)
        if len(cache) > self._limits.authorisations:
            cache.popitem(last=False)


def _is_outage(error: MotetError) -> bool:
    """Whether the source failed, as opposed to a refusal of the caller."""
    return error.status >= 500 or isinstance(error, (Overloaded, SourceOffline))


def _is_pinned(resolved: ResolvedAdapter, ref: AdapterRef) -> bool:
    """Whether `ref` contains the full commit hash, so that its files cannot change."""
    return resolved.revision == ref.revision and _COMMIT.fullmatch(resolved.revision) is not None


MAX_RECORDS = 10_000
MAX_BYTES = 4096


class PublicRecord(msgspec.Struct, frozen=True):
    """A public `ref` and its `revision`, from the latest call of the source without a token."""

    ref: AdapterRef
    revision: str


class PublicRecords:
    """The records of one cache directory. Methods block; they ignore a cache that cannot be read or written."""

    def __init__(self, cache: Path) -> None:
        self._adapters = cache / "adapters"
        self._directory = cache / "authorisations"
        self._written: OrderedDict[AdapterRef, str] = OrderedDict()
        self._sweep()

    def is_recorded(self, ref: AdapterRef, revision: str) -> bool:
        """Whether this process has already written this record."""
        return self._written.get(ref) == revision

    def record(self, ref: AdapterRef, revision: str) -> None:
        """Record that `ref` is public and currently `revision`, which is in the cache."""
        with contextlib.suppress(OSError):
            for recorded_ref in {ref, AdapterRef(ref.source, ref.id, revision)}:
                write_file(self._file(recorded_ref), msgspec.json.encode(PublicRecord(recorded_ref, revision)))
            self._written[ref] = revision
            if len(self._written) > MAX_RECORDS:
                self._written.popitem(last=False)

    def find(self, ref: AdapterRef) -> str | None:
        """Return the public revision of `ref` that is in the cache."""
        record = _read(self._file(ref))
        if record is None or record.ref != ref or not self._is_on_disk(record):
            return None
        return record.revision

    def forget(self, ref: AdapterRef) -> None:
        """Delete the record of `ref`, which is not public or no longer public."""
        self._written.pop(ref, None)
        with contextlib.suppress(OSError):
            self._file(ref).unlink(missing_ok=True)

    def _file(self, ref: AdapterRef) -> Path:
        name = "\0".join((ref.source, ref.id, ref.revision or ""))
        return self._directory / f"{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:32]}.json"

    def _is_on_disk(self, record: PublicRecord) -> bool:
        return copy_directory(self._adapters, record.ref, record.revision).is_dir()

    def _sweep(self) -> None:
        """Remove the records whose files are gone, and the oldest of too many."""
        with contextlib.suppress(OSError):
            files = sorted(self._directory.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
            for number, file in enumerate(files):
                record = _read(file)
                if number >= MAX_RECORDS or record is None or not self._is_on_disk(record):
                    file.unlink(missing_ok=True)


def _read(file: Path) -> PublicRecord | None:
    """The record in `file`; None if the file is missing or damaged."""
    try:
        return msgspec.json.decode(read_regular(file, MAX_BYTES), type=PublicRecord)
    except (OSError, ValueError):
        return None
