"""Checks Numba's cache of compiled kernels: a damaged file is removed and compiled again, instead of crashing."""

from __future__ import annotations

import hashlib
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

from loguru import logger
from numba.core.caching import IndexDataCacheFile
from numba.core.serialize import dumps


class CheckedCacheFile(IndexDataCacheFile):
    """Numba's index and data files of one function, with a digest on each compiled kernel.

    Numba writes a temporary file and renames it, but does not call fsync: after a power failure a file may be empty,
    truncated or partly zeros. Only files that this user's own processes wrote are read here.
    """

    def save(self, key: Any, data: Any) -> None:
        """Store `data`, with its digest."""
        blob: bytes = dumps(data)  # type: ignore[no-untyped-call]
        super().save(key, (hashlib.sha256(blob).digest(), blob))  # type: ignore[no-untyped-call]

    def load(self, key: Any) -> Any:
        """The stored kernel; None if there is none, or its files are damaged, which removes them."""
        try:
            stored = super().load(key)  # type: ignore[no-untyped-call]
            if stored is None:
                return None
            digest, blob = stored
            if hashlib.sha256(blob).digest() != digest:
                raise ValueError("the digest does not match")
            return pickle.loads(blob)
        except Exception as error:  # a damaged pickle may raise anything
            logger.warning("{} is damaged ({}); compiling it again", self._index_path, type(error).__name__)
            self._remove()
            return None

    def _remove(self) -> None:
        index = Path(self._index_path)
        for path in (index, *index.parent.glob(f"{index.stem}.*.nbc")):
            with suppress(OSError):
                path.unlink()


def check_cached_kernels(dispatcher: Any) -> None:
    """Make `dispatcher`, a function compiled with `cache=True`, check what it loads from its cache."""
    dispatcher._cache._cache_file.__class__ = CheckedCacheFile
