"""The loader's warnings about an adapter reach the log once per generation, with the adapter's id."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from loguru import logger
from support.scripted_registry import RegistrySetup, run

from motet.core.adapter_source import AdapterRef
from motet.core.messages import AdapterPart, PreparedAdapter


def test_a_warning_is_logged_once_per_generation(tmp_path: Path) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level}: {message}", level="WARNING")

    async def body() -> None:
        setup = RegistrySetup(tmp_path)
        prepare = setup.loader.prepare

        async def with_warning(parts: Sequence[AdapterPart]) -> PreparedAdapter:
            return msgspec.structs.replace(await prepare(parts), warnings=("it names another base",))

        setup.loader.prepare = with_warning  # type: ignore[method-assign]
        for revision in ("r1", "r1", "r2", "r2"):
            setup.publish("org/pirate", revision)
            await setup.adapters.serve(AdapterRef("hub", "org/pirate"), revision)  # each revision by another caller
        await setup.registry.close()

    try:
        run(body)
    finally:
        logger.remove(sink)
    assert lines == ["WARNING: adapter hub:org/pirate: it names another base\n"] * 2
