"""The loader as the registry uses it: so many questions at once, each with a time-out, and no paths in its errors."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from motet.api.adapters.outcomes import LoadLimits
from motet.api.adapters.source_calls import presentable, unavailable
from motet.core.errors import MotetError
from motet.core.messages import AdapterPart, PreparedAdapter


class Loader(Protocol):
    """What is needed of the loader's client."""

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """Parse, check and cut the sum of the adapters in `parts`. Raises AdapterRefused, Unavailable."""


class Preparer:
    """The loader, with a limit on what is asked of it at once and a time-out."""

    def __init__(self, loader: Loader, limits: LoadLimits) -> None:
        self._loader = loader
        self._seconds = limits.prepare_seconds
        self._slots = asyncio.Semaphore(limits.preparations)

    async def prepare(self, name: str, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        """The sum of `parts`, called `name` in errors, prepared. Raises AdapterRefused, Unavailable."""
        async with self._slots:
            try:
                async with asyncio.timeout(self._seconds):
                    return await self._loader.prepare(parts)
            except TimeoutError:
                raise unavailable(f"{name} was not prepared within {self._seconds:g} s") from None
            except MotetError as error:
                for part in parts:
                    error = presentable(error, part.directory)
                raise error from None
