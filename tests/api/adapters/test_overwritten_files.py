"""Adapters whose files are overwritten while they are served: one whole version or a 503, never a mixture."""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.scripted_registry import failure

from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import NameRules
from motet.core.adapter_source import AdapterRef
from motet.core.errors import AdapterRefused, Unavailable
from motet.core.messages import AdapterPart, PreparedAdapter
from motet.core.settings import Settings
from motet.plugins.sources.local import LocalAdapters

SUPPORT = AdapterRef("local", "support")


class ReadingLoader:
    """Refuses weights that do not end with a full stop, as a file that is cut short; `meanwhile` runs before it."""

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = lambda: None
        self.error: Exception | None = None

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        self.meanwhile()
        if self.error is not None:
            raise self.error
        text = (Path(parts[0].directory) / "adapter_model.safetensors").read_text()
        if not text.endswith("."):
            raise AdapterRefused("cut short", code="adapter_unreadable")
        return PreparedAdapter(text, f"fp-{text}", (), (), 8)


class Server:
    """A registry over one root with the adapter `support`."""

    def __init__(self, place: Path) -> None:
        directory = place / "root" / "support"
        directory.mkdir(parents=True)
        write(directory / "adapter_config.json", "{}", age=60)
        self.weights = directory / "adapter_model.safetensors"
        source = LocalAdapters()
        source.configure(Settings(adapter_root=(str(place / "root"),)))
        self.loader = ReadingLoader()
        names = NameRules("base", "local", place / "cache")
        self.registry = LocalRegistry({"local": source}, self.loader, names, LoadLimits(failure_seconds=0.0))

    async def serve(self) -> str:
        return (await self.registry.serve(SUPPORT, None)).prepared.id


def write(path: Path, text: str, age: float = 0.0) -> None:
    path.write_text(text)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_the_last_good_generation_is_served_until_the_new_one_loads(server: Server) -> None:
    async def body() -> None:
        write(server.weights, "one.")
        assert await server.serve() == "one."
        for text in ("", "tw", "two"):
            write(server.weights, text)
            assert await server.serve() == "one."
        write(server.weights, "two.")
        assert await server.serve() == "two."
        write(server.weights, "three.")
        server.loader.error = Unavailable("the loader was restarted")
        assert await server.serve() == "two."

    asyncio.run(body())


def test_a_first_load_of_files_that_are_being_written_can_be_tried_again(server: Server) -> None:
    async def body() -> None:
        write(server.weights, "on")
        error = await failure(server.serve())
        assert (error.status, error.code) == (503, "adapter_changed")
        write(server.weights, "one.")
        assert await server.serve() == "one."
        write(server.weights, "damaged", age=60)
        assert (await failure(server.serve())).status == 422  # nobody writes any more

    asyncio.run(body())


def test_a_refusal_of_another_kind_is_final_at_once(server: Server) -> None:
    async def body() -> None:
        write(server.weights, "one.")
        server.loader.error = AdapterRefused("use_dora is not supported")
        assert (await failure(server.serve())).status == 422

    asyncio.run(body())


@pytest.mark.parametrize("error", [None, AdapterRefused("tensor x contains NaN or infinity")])
def test_files_that_change_while_they_are_read_are_not_kept(server: Server, error: Exception | None) -> None:
    async def body() -> None:
        write(server.weights, "half one, half two.")
        server.loader.error = error
        server.loader.meanwhile = lambda: write(server.weights, "written on.", age=60)
        failed = await failure(server.serve())
        assert (failed.status, failed.code) == (503, "adapter_changed")
        server.loader.meanwhile, server.loader.error = lambda: None, None
        assert await server.serve() == "written on."

    asyncio.run(body())
