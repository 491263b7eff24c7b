"""Random callers and adapter changes at the same time: no caller gets an adapter that it may not use."""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from support.scripted_registry import FakeLoader, Published, ScriptedSource

from motet.api.adapters.limits import LoadLimits
from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import NameRules
from motet.api.adapters.registry import ServedAdapter
from motet.core.adapter_source import AdapterRef
from motet.core.errors import AdapterRefused, Forbidden

NAMES, TOKENS = ["x", "y"], [None, "a", "b"]


@dataclass(frozen=True)
class Serve:
    """A caller, who goes away after so many turns of the event loop, or never."""

    name: str
    token: str | None
    patience: int | None


@dataclass(frozen=True)
class Publish:
    """A new revision, for these callers."""

    name: str
    revision: str
    tokens: frozenset[str | None]


@dataclass(frozen=True)
class Break:
    """From now on the loader refuses everything, or nothing any more."""

    broken: bool


ACTIONS = st.one_of(
    st.builds(Serve, st.sampled_from(NAMES), st.sampled_from(TOKENS), st.none() | st.integers(0, 12)),
    st.builds(
        Publish, st.sampled_from(NAMES), st.sampled_from(["r1", "r2", "r3"]), st.frozensets(st.sampled_from(TOKENS))
    ),
    st.builds(Break, st.booleans()),
)


class Run:
    """One sequence of actions, each followed by some turns of the event loop."""

    def __init__(self, cache: Path) -> None:
        self.source, self.loader = ScriptedSource(), FakeLoader()
        for name in NAMES:
            self.source.published[name] = Published("r0", set(TOKENS))
        names = NameRules("base", "hub", cache)
        limits = LoadLimits(failure_seconds=0.01, authorisation_seconds=0)
        self.adapters = LocalRegistry({"hub": self.source}, self.loader, names, limits)
        self.was_broken = False

    async def act(self, action: Serve | Publish | Break) -> None:
        match action:
            case Serve():
                await self.call(action)
            case Publish(name, revision, tokens):
                self.source.published[name] = Published(revision, set(tokens))
            case Break(broken):
                self.loader.error = AdapterRefused("broken") if broken else None
                self.was_broken |= broken

    async def call(self, caller: Serve) -> None:
        """Be one caller, and check that what comes back was theirs to have while they waited."""
        since = len(self.source.verdicts)
        serving = asyncio.create_task(self.adapters.serve(AdapterRef("hub", caller.name), caller.token))
        if caller.patience is not None:
            for _ in range(caller.patience):
                await asyncio.sleep(0)
            serving.cancel()
        (outcome,) = await asyncio.gather(serving, return_exceptions=True)
        verdicts = [
            revision
            for name, token, revision in self.source.verdicts[since:]
            if (name, token) == (caller.name, caller.token)
        ]
        match outcome:
            case ServedAdapter():
                name, revision = outcome.prepared.id.split()
                assert name == caller.name
                assert revision in verdicts
                assert (outcome.directory / "adapter_config.json").read_text() == outcome.prepared.id
            case Forbidden():
                assert None in verdicts
            case AdapterRefused():
                assert self.was_broken
            case asyncio.CancelledError():
                assert caller.patience is not None
            case _:
                raise AssertionError(outcome)


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(ACTIONS, st.integers(0, 6)), max_size=14))
def test_callers_get_what_is_theirs_whatever_else_happens(steps: list[tuple[Serve | Publish | Break, int]]) -> None:
    async def body(cache: Path) -> None:
        run = Run(cache)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            for action, turns in steps:
                group.create_task(run.act(action))
                for _ in range(turns):
                    await asyncio.sleep(0)
        while len(asyncio.all_tasks()) > 1:  # loads that nobody waits for any more run to their end
            await asyncio.sleep(0.001)
        assert run.source.fetching == set()
        assert list(cache.glob("adapters/.*")) == []

    with tempfile.TemporaryDirectory() as place:
        asyncio.run(body(Path(place)))
