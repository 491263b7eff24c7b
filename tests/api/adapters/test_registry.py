"""The adapter registry: every caller is authorised, loads are shared, and failures stay with their own request."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from loguru import logger
from support.scripted_registry import Published, RegistrySetup, failure, run, until

from motet.api.adapters.registry import ServedAdapter
from motet.core.adapter_source import AdapterRef, ResolvedAdapter
from motet.core.errors import AdapterRefused, Forbidden, NotFound, Overloaded, Unavailable
from motet.core.messages import AdapterPart, PreparedAdapter

PIRATE = AdapterRef("hub", "org/pirate")
pytestmark = pytest.mark.usefixtures("registry_place")


def test_an_adapter_is_fetched_prepared_once(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish()
        first = await s.adapters.serve(PIRATE, None)
        again = await s.adapters.serve(AdapterRef("hub", "org/pirate", "main"), None)
        assert first.prepared == again.prepared
        assert first.directory == again.directory
        assert first.directory.parent == s.cache
        assert again.ref.revision == "main"
        assert (s.hub.count("resolve"), s.hub.count("fetch"), len(s.loader.prepared)) == (2, 1, 1)

        s.publish(revision="r2")
        assert (await s.adapters.serve(PIRATE, None)).prepared.id == "org/pirate r2"

        anew = RegistrySetup(tmp_path)  # a new process over the same cache
        anew.publish(revision="r2")
        await anew.adapters.serve(PIRATE, None)
        assert (anew.hub.count("fetch"), len(anew.loader.prepared)) == (0, 1)

    run(body)


def test_concurrent_callers_share_one_load_and_each_is_authorised(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish(tokens={"a", "b"})
        s.hub.gates["resolve"] = asyncio.Event()
        calls = [s.adapters.serve(PIRATE, token) for token in ("a", "b", "a", "stranger")]
        running = asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: s.hub.count("resolve") == 3)  # the last call's; so the others have arrived
        s.hub.gates["resolve"].set()
        *served, refused = await running
        assert {served.prepared.id for served in served if isinstance(served, ServedAdapter)} == {"org/pirate r1"}
        assert isinstance(refused, Forbidden)
        assert s.hub.count("resolve") == 3  # the two that are the same are one question
        assert (s.hub.count("fetch"), len(s.loader.prepared)) == (1, 1)

    run(body)


def test_a_revoked_token_fails_the_next_request(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish(tokens={"a", "b"})
        await s.adapters.serve(PIRATE, "a")
        s.publish(tokens={"b"})
        assert isinstance(await failure(s.adapters.serve(PIRATE, "a")), Forbidden)
        assert isinstance(await failure(s.adapters.serve(PIRATE, None)), Forbidden)
        await s.adapters.serve(PIRATE, "b")
        assert s.hub.count("fetch") == 1

    run(body)


@pytest.mark.parametrize("step", ["resolve", "fetch"])
def test_other_callers_are_served_after_a_cancellation(tmp_path: Path, step: str) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish()
        s.hub.gates[step] = asyncio.Event()
        first = asyncio.create_task(s.adapters.serve(PIRATE, None))
        await until(lambda: s.hub.count(step) == 1)
        second = asyncio.create_task(s.adapters.serve(PIRATE, None))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        s.hub.gates[step].set()
        assert (await second).prepared.id == "org/pirate r1"
        assert (first.cancelled(), s.hub.count("fetch")) == (True, 1)

    run(body)


def test_a_token_that_fails_in_the_middle_fails_alone(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish(tokens={"a", "b"})
        s.hub.gates["fetch"] = asyncio.Event()
        first = asyncio.create_task(s.adapters.serve(PIRATE, "a"))
        await until(lambda: s.hub.count("fetch") == 1)
        second = asyncio.create_task(s.adapters.serve(PIRATE, "b"))
        await until(lambda: s.hub.count("resolve") == 2)
        await asyncio.sleep(0.01)
        s.publish(tokens={"b"})
        s.hub.gates["fetch"].set()
        assert isinstance(await failure(first), Forbidden)
        assert (await second).prepared.id == "org/pirate r1"
        assert [token for step, _, token in s.hub.calls if step == "fetch"] == ["a", "b"]

    run(body)


def test_a_failed_load_is_remembered_for_its_revision_and_not_for_long(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, refusal_seconds=0.6)
        s.publish()
        s.loader.error = AdapterRefused("use_dora is not supported")
        for _ in range(3):
            error = await failure(s.adapters.serve(PIRATE, None))
            assert isinstance(error, AdapterRefused)
            assert (error.message, error.param) == ("use_dora is not supported", "model")
        assert len(s.loader.prepared) == 1
        s.loader.error = None
        s.publish(revision="r2")
        await s.adapters.serve(PIRATE, None)
        s.publish(revision="r1")
        assert isinstance(await failure(s.adapters.serve(PIRATE, None)), AdapterRefused)
        await asyncio.sleep(0.61)
        await s.adapters.serve(PIRATE, None)

    run(body)


def test_a_missing_adapter_is_asked_for_again(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        assert isinstance(await failure(s.adapters.serve(PIRATE, None)), NotFound)
        s.publish()
        await s.adapters.serve(PIRATE, None)

    run(body)


@pytest.mark.parametrize("step", ["resolve", "fetch", "prepare"])
def test_what_takes_too_long_is_unavailable(tmp_path: Path, step: str) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, **{f"{step}_seconds": 0.02})
        s.publish()
        s.hub.gates[step] = s.loader.gate = asyncio.Event()
        error = await failure(s.adapters.serve(PIRATE, None))
        assert isinstance(error, Unavailable)
        assert "0.02 s" in error.message
        assert list(s.cache.glob(".*")) == []

    run(body)


@pytest.mark.parametrize("step", ["resolve", "fetch"])
def test_a_sources_bug_is_an_error_without_the_token(tmp_path: Path, step: str) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish()
        s.hub.errors[step] = KeyError("https://host/?token=hf_secret")
        shown = await failure(s.adapters.serve(PIRATE, "hf_secret"))
        assert (type(shown), shown.code) == (Unavailable, "source_unavailable")
        assert "hub:org/pirate" in shown.message
        assert "KeyError" in "".join(lines)
        s.hub.errors[step] = Unavailable("no answer from https://host/?token=hf_secret")
        s.publish(revision="r2")
        assert isinstance(other := await failure(s.adapters.serve(PIRATE, "hf_secret")), Unavailable)
        assert "hf_secret" not in shown.message + other.message + repr(shown) + repr(other) + "".join(lines)

    lines: list[str] = []
    sink = logger.add(lines.append, diagnose=False)
    try:
        run(body)
    finally:
        logger.remove(sink)


def test_a_slow_source_delays_no_other_and_its_fetches_are_limited(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, fetches=2, waiting=5)
        s.hub.gates["fetch"] = asyncio.Event()
        s.demo.published["pirate"] = Published("r1")
        for number in range(6):
            s.publish(f"org/a{number}")
        slow = [asyncio.create_task(s.adapters.serve(AdapterRef("hub", f"org/a{n}"), None)) for n in range(5)]
        await until(lambda: s.hub.count("fetch") == 2)
        await s.adapters.serve(AdapterRef("demo", "pirate"), None)
        assert isinstance(await failure(s.adapters.serve(AdapterRef("hub", "org/a5"), None)), Overloaded)
        s.hub.gates["fetch"].set()
        await asyncio.gather(*slow)
        assert s.hub.most_fetching == 2

    run(body)


def test_a_cache_emptied_by_hand_is_filled_again(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish()
        await s.adapters.serve(PIRATE, None)
        shutil.rmtree(s.cache)
        served = await s.adapters.serve(PIRATE, None)
        assert served.directory.is_dir()
        assert s.hub.count("fetch") == 2

    run(body)


def test_a_cache_that_cannot_be_written_is_said_to_be(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "adapters").touch()
        s = RegistrySetup(tmp_path)
        s.publish()
        assert "cache" in (await failure(s.adapters.serve(PIRATE, None))).message

    run(body)


def test_the_memory_of_loads_is_bounded(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, remembered=2)
        for name in ("a", "b", "c", "a", "c"):
            s.publish(name)
            await s.adapters.serve(AdapterRef("hub", name), None)
        assert s.loader.prepared == ["a r1", "b r1", "c r1", "a r1"]

    run(body)


def test_closing_ends_what_runs(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.publish()
        s.hub.gates["fetch"] = asyncio.Event()
        waiting = asyncio.create_task(s.adapters.serve(PIRATE, None))
        await until(lambda: s.hub.count("fetch") == 1)
        await s.registry.close()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.done()
        assert list(s.cache.glob(".*")) == []

    run(body)


def test_what_the_loader_refuses_is_not_kept_and_named_without_our_directories(tmp_path: Path) -> None:
    async def refuse(parts: Sequence[AdapterPart]) -> PreparedAdapter:
        raise AdapterRefused(f"{parts[0].directory}/adapter_config.json is full of riddles")

    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.loader.prepare = refuse  # type: ignore[method-assign]
        s.publish()
        error = await failure(s.adapters.serve(PIRATE, None))
        assert "riddles" in error.message
        assert str(tmp_path) not in error.message
        assert list(s.cache.iterdir()) == []

    run(body)


def test_a_sources_own_files_stay_whatever_the_loader_says(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "adapter_config.json").write_text("{}")

    async def in_place(adapter: ResolvedAdapter, token: str | None, into: Path) -> Path:
        return own

    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.hub.fetch = in_place  # type: ignore[method-assign]
        s.loader.error = AdapterRefused("full of riddles")
        s.publish()
        assert isinstance(await failure(s.adapters.serve(PIRATE, None)), AdapterRefused)
        assert (own / "adapter_config.json").is_file()

    run(body)
