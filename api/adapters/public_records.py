"""Which adapters on disk were readable without a token, so that they can be served while their source is away.

One small file per reference. A record is written when the files are in the cache, and removed when the source refuses
a caller without a token. Records outlive the process: this is what a restart without a network goes by.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from pathlib import Path

import msgspec

from motet.api.adapters.copies import copy_directory
from motet.core.adapters import AdapterRef
from motet.core.paths import read_regular, write_file

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
        """Record that everybody may read `ref`, which is `revision` now and in the cache."""
        with contextlib.suppress(OSError):
            for named in {ref, AdapterRef(ref.source, ref.id, revision)}:
                write_file(self._file(named), msgspec.json.encode(PublicRecord(named, revision)))
            self._noted[ref] = revision
            if len(self._noted) > MAX_RECORDS:
                self._noted.popitem(last=False)

    def find(self, ref: AdapterRef) -> str | None:
        """The revision of `ref` that everybody may read and that is in the cache."""
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
