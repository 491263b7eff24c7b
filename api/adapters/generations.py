"""The last generation of each adapter that loaded: served while a newer one cannot be loaded yet."""

from __future__ import annotations

from collections import OrderedDict

from loguru import logger

from motet.api.adapters.outcomes import Loaded
from motet.core.adapters import AdapterRef
from motet.core.errors import MotetError


class Generations:
    """What each reference meant when it last loaded, of the `limit` references used last. Authorises nobody."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._loaded: OrderedDict[AdapterRef, tuple[Loaded, bool]] = OrderedDict()

    def loaded(self, ref: AdapterRef, loaded: Loaded) -> None:
        """`ref` has been loaded as `loaded`."""
        self._loaded[ref] = (loaded, False)
        self._loaded.move_to_end(ref)
        if len(self._loaded) > self._limit:
            self._loaded.popitem(last=False)

    def earlier(self, ref: AdapterRef, error: MotetError) -> Loaded:
        """What `ref` was before its present generation, which failed with `error`. Raises `error` if unknown."""
        loaded, logged = self._loaded.get(ref, (None, False))
        if loaded is None or not loaded.intact():
            raise error
        if not logged:
            logger.warning("{}: the earlier generation is served; the new one is not loaded: {}", ref, error.message)
            self._loaded[ref] = (loaded, True)
        return loaded
