"""Adapters without real files: a source, a loader and an engine that a test controls.

For tests of the API's adapter registry alone; everything else uses the real loader and engine.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import NameRules
from motet.api.adapters.registry import AdapterRegistry
from motet.api.adapters.remote_registry import RegistryServer, RemoteRegistry
from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import Forbidden, MotetError, NotFound
from motet.core.messages import AdapterPart, PreparedAdapter


@dataclass
class Published:
    """An adapter at the source: its revision, and the tokens that may use it (None: public)."""

    revision: str
    tokens: set[str | None] | None = None

    def admits(self, token: str | None) -> bool:
        return self.tokens is None or token in self.tokens


@dataclass
class ScriptedSource(AdapterSource):
    """The source. Each step waits for `gates[step]` if there is one, then raises `errors[step]` if there is one.

    `calls` are (step, id, token) when they begin; `verdicts` are (id, token, revision if admitted else None) when they
    are returned. Two concurrent fetches of one revision are a failure.
    """

    local_files: bool = False
    published: dict[str, Published] = field(default_factory=dict)
    aliases: list[AdapterListing] = field(default_factory=list)
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    calls: list[tuple[str, str, str | None]] = field(default_factory=list)
    verdicts: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    fetching: set[tuple[str, str]] = field(default_factory=set)
    most_fetching: int = 0

    async def resolve(self, ref: AdapterRef, token: str | None) -> ResolvedAdapter:
        await self._step("resolve", ref.id, token)
        return ResolvedAdapter(ref, self._admitted(ref.id, token).revision)

    async def fetch(self, adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        key = (adapter.ref.id, adapter.revision)
        assert key not in self.fetching
        self.fetching.add(key)
        self.most_fetching = max(self.most_fetching, len(self.fetching))
        try:
            await self._step("fetch", adapter.ref.id, token)
            self._admitted(adapter.ref.id, token)
        finally:
            self.fetching.remove(key)
        (into / "adapter_config.json").write_text(f"{adapter.ref.id} {adapter.revision}")
        return into

    async def listing(self) -> Sequence[AdapterListing]:
        await self._step("listing", "", None)
        return self.aliases

    def count(self, step: str) -> int:
        """The number of calls of `step`."""
        return sum(call[0] == step for call in self.calls)

    async def _step(self, step: str, name: str, token: str | None) -> None:
        self.calls.append((step, name, token))
        await asyncio.sleep(0)
        if step in self.gates:
            await self.gates[step].wait()
        if step in self.errors:
            raise self.errors[step]

    def _admitted(self, name: str, token: str | None) -> Published:
        published = self.published.get(name)
        admitted = published is not None and published.admits(token)
        self.verdicts.append((name, token, published.revision if published and admitted else None))
        if published is None:
            raise NotFound(f"no {name}", param="model")
        if not admitted:
            raise Forbidden(f"not for {token}", param="model")
        return published


@dataclass
class FakeLoader:
    """Prepares an adapter that contains the text of its config file; raises `error` if it is set."""

    prepared: list[str] = field(default_factory=list)
    error: MotetError | None = None
    gate: asyncio.Event | None = None

    async def prepare(self, parts: Sequence[AdapterPart]) -> PreparedAdapter:
        files = [Path(part.directory) / "adapter_config.json" for part in parts]
        texts = [file.read_text() for file in files]
        weighted = [t if p.weight == 1 else f"{p.weight:g} * {t}" for t, p in zip(texts, parts, strict=True)]
        content = " + ".join(weighted)
        self.prepared.append(content)
        await asyncio.sleep(0)
        if self.gate:
            await self.gate.wait()
        if self.error:
            raise self.error
        prepared = files[0].with_name("prepared" if len(files) == 1 else "merged")
        prepared.touch()
        return PreparedAdapter(content, f"fp-{content}", (str(prepared),), (), 8)


class OverSocket(RemoteRegistry):
    """A registry that is called over a real socket, connected at the first call; both ends are in this process."""

    in_use = False
    opened: list[OverSocket] = []  # noqa: RUF012

    def __init__(self, registry: LocalRegistry, place: Path, names: NameRules) -> None:
        self._registry = registry
        self._address = f"ipc://{place}/s"
        self._server: RegistryServer | None = None
        super().__init__(self._address, names)

    async def call(self, method: str, arguments: bytes) -> bytes:
        if self._server is None:
            self._server = RegistryServer(self._registry, self._address)
            self._serving = asyncio.create_task(self._server.run())
            self.opened.append(self)
            await self.start()
        return await super().call(method, arguments)

    async def close(self) -> None:
        assert self._server is not None
        await super().close()
        self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)
        await self._server.close()


class RegistrySetup:
    """A registry with the sources `hub` and `demo`, its scripted parts, and `adapters`, the interface to call.

    `now` is the clock of its authorisations, which hold for no time unless `limits` say so.
    """

    def __init__(self, cache: Path, **limits: float) -> None:
        self.now = 1000.0
        limits = {"authorisation_seconds": 0, "unknown_seconds": 0, **limits}
        self.hub, self.demo = ScriptedSource(), ScriptedSource()
        self.loader = FakeLoader()
        self.cache = cache / "adapters"
        names = NameRules("smollm2", "hub", cache)
        sources = {"hub": self.hub, "demo": self.demo}
        converted = msgspec.convert(limits, LoadLimits)
        self.registry = LocalRegistry(sources, self.loader, names, converted, lambda: self.now)
        self.adapters: AdapterRegistry = self.registry
        if OverSocket.in_use:
            self.adapters = OverSocket(self.registry, Path(tempfile.mkdtemp()), names)

    def publish(self, name: str = "org/pirate", revision: str = "r1", tokens: set[str | None] | None = None) -> None:
        self.hub.published[name] = Published(revision, tokens)

    def listed(self, scripted: ScriptedSource, source: str, *names: str) -> None:
        scripted.aliases = [AdapterListing(AdapterRef(source, name), alias=name) for name in names]


def run(body: Callable[[], Awaitable[None]]) -> None:
    """Run an asynchronous test; every test must leave no task behind."""

    async def checked() -> None:
        try:
            async with asyncio.timeout(20):
                await body()
        finally:
            while OverSocket.opened:
                await OverSocket.opened.pop().close()
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(checked())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def failure(call: Awaitable[object]) -> MotetError:
    with pytest.raises(MotetError) as caught:
        await call
    return caught.value
