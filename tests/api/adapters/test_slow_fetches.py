"""Fetches that are slow, hang or send too much: they end, and do not delay other adapters."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from support.scripted_registry import RegistrySetup, failure, run, until

from motet.api.adapters import source_calls
from motet.core.adapter_source import AdapterRef, ResolvedAdapter
from motet.core.errors import AdapterRefused, Overloaded, Unavailable

PIRATE, SLOW = AdapterRef("hub", "org/pirate"), AdapterRef("hub", "org/slow")
Fetch = Callable[[Path], Awaitable[None]]


def hang_for(s: RegistrySetup, name: str, first: Fetch) -> list[str]:
    """Make fetches of `name` do `first`, then wait for ever; returns a list of how they ended."""
    fetch, ended = s.hub.fetch, []

    async def slow(adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        if adapter.ref.id != name:
            return await fetch(adapter, token, into)
        try:
            await first(into)
            await asyncio.Event().wait()
        finally:
            ended.append(name)
        return into

    s.hub.fetch = slow  # type: ignore[method-assign]
    return ended


async def nothing(into: Path) -> None:
    """Write nothing."""


async def some(into: Path) -> None:
    (into / "adapter_model.safetensors").write_bytes(b"x" * 1000)


def test_a_fetch_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, abandoned_seconds=0.05)
        s.publish("org/slow")
        ended = hang_for(s, "org/slow", some)
        for caller in [asyncio.create_task(s.adapters.serve(SLOW, None)) for _ in range(3)]:
            await asyncio.sleep(0.01)
            caller.cancel()
        await until(lambda: bool(ended))
        await asyncio.sleep(0.05)
        assert list(s.cache.glob(".*")) == []

    run(body)


def test_a_caller_that_comes_back_in_time_finds_its_fetch_going_on(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, abandoned_seconds=5)
        s.publish()
        s.hub.gates["fetch"] = asyncio.Event()
        first = asyncio.create_task(s.adapters.serve(PIRATE, None))
        await until(lambda: s.hub.count("fetch") == 1)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        again = asyncio.create_task(s.adapters.serve(PIRATE, None))
        await asyncio.sleep(0.01)
        s.hub.gates["fetch"].set()
        await again
        assert s.hub.count("fetch") == 1

    run(body)


def test_a_caller_that_comes_while_a_fetch_is_being_ended_gets_a_new_one(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, abandoned_seconds=0)
        s.publish()
        s.hub.gates["fetch"] = asyncio.Event()
        for _ in range(5):
            caller = asyncio.create_task(s.adapters.serve(PIRATE, None))
            await asyncio.sleep(0.01)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
        s.hub.gates["fetch"].set()
        assert (await s.adapters.serve(PIRATE, None)).prepared.id == "org/pirate r1"

    run(body)


def test_slow_fetches_give_their_places_up(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, fetches=1, slot_seconds=0.05, abandoned_seconds=0)
        s.publish()
        s.publish("org/slow")
        ended = hang_for(s, "org/slow", nothing)
        slow = asyncio.create_task(s.adapters.serve(SLOW, None))
        await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            await s.adapters.serve(PIRATE, None)
        assert not ended
        slow.cancel()
        await until(lambda: bool(ended))
        await asyncio.sleep(0.02)

    run(body)


def test_a_fetch_that_drips_is_ended(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, watch_seconds=0.02, stall_seconds=0.1, stall_bytes=5000)
        s.publish("org/slow")
        ended = hang_for(s, "org/slow", some)
        error = await failure(s.adapters.serve(SLOW, None))
        assert isinstance(error, Unavailable)
        assert "too slowly" in error.message
        assert ended

    run(body)


def test_a_fetch_that_brings_too_much_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_calls, "MAX_OTHER_BYTES", 0)

    async def body() -> None:
        s = RegistrySetup(tmp_path, watch_seconds=0.02, largest_adapter=999)
        s.publish("org/slow")
        ended = hang_for(s, "org/slow", some)
        assert isinstance(await failure(s.adapters.serve(SLOW, None)), AdapterRefused)
        assert ended
        assert s.hub.max_adapter_bytes == 999

    run(body)


def test_one_api_key_leaves_half_of_the_loads_to_others(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, waiting=4, abandoned_seconds=0)
        s.hub.gates["fetch"] = asyncio.Event()
        refs = [AdapterRef("hub", f"org/{number}") for number in range(5)]
        for ref in refs:
            s.publish(ref.id)
        alices = [asyncio.create_task(s.adapters.serve(ref, None, "alice")) for ref in refs[:2]]
        await until(lambda: s.hub.count("fetch") == 2)
        assert isinstance(await failure(s.adapters.serve(refs[2], None, "alice")), Overloaded)
        shared = asyncio.create_task(s.adapters.serve(refs[0], None, "alice"))  # no further load
        bobs = asyncio.create_task(s.adapters.serve(refs[3], None, "bob"))
        await until(lambda: s.hub.count("fetch") == 3)
        s.hub.gates["fetch"].set()
        await asyncio.gather(*alices, shared, bobs)
        await s.adapters.serve(refs[2], None, "alice")

    run(body)
