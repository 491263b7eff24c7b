"""Merged adapters in the registry: every part is authorised and loaded, and each merge is made once."""

import asyncio
import math
import shutil
from pathlib import Path

import pytest
from support.scripted_registry import Published, RegistrySetup, failure, run, until

from motet.api.adapters.registry import ServedAdapter
from motet.core.adapter_source import AdapterRef
from motet.core.errors import AdapterRefused, Forbidden, InvalidRequest, NotFound, Unavailable
from motet.core.messages import MAX_PARTS

A, B, C = AdapterRef("hub", "org/a"), AdapterRef("hub", "org/b"), AdapterRef("demo", "c")
MIX = ((A, 0.5), (B, -0.25))
NOBODY = (None, None)
MERGED = "0.5 * org/a r1 + -0.25 * org/b r1"

pytestmark = pytest.mark.usefixtures("registry_place")


def setup(place: Path, **limits: float) -> RegistrySetup:
    """`a` for the tokens x and y, `b` for x and z, and `c` for everybody."""
    s = RegistrySetup(place, **limits)
    s.publish("org/a", tokens={None, "x", "y"})
    s.publish("org/b", tokens={None, "x", "z"})
    s.demo.published["c"] = Published("r1")
    return s


def test_parts_are_loaded_once_and_merged_once(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        first, *others = await asyncio.gather(*(s.adapters.serve_merged(MIX, NOBODY) for _ in range(5)))
        assert others == [first] * 4
        assert (first.ref, first.prepared.id) == (A, MERGED)
        assert (first.directory / "adapter_config.json").read_text() == "org/a r1"
        assert sorted(s.loader.prepared) == sorted([MERGED, "org/a r1", "org/b r1"])
        assert s.hub.count("fetch") == 2

        alone = await s.adapters.serve(B, None)
        assert alone.prepared.id == "org/b r1"
        other = await s.adapters.serve_merged(((B, 1.0), (C, 2.0), (B, 1.0)), (None, None, None))
        assert other.prepared.id == "org/b r1 + 2 * c r1 + org/b r1"
        assert (s.hub.count("fetch"), s.demo.count("fetch")) == (2, 1)

        s.publish("org/b", revision="r2")
        assert (await s.adapters.serve_merged(MIX, NOBODY)).prepared.id == "0.5 * org/a r1 + -0.25 * org/b r2"

    run(body)


def test_every_part_is_authorised_for_its_own_token_each_time(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        await s.adapters.serve_merged(MIX, ("y", "z"))
        for tokens, culprit in ((("z", "z"), A), (("y", "y"), B), (("z", "y"), A)):
            error = await failure(s.adapters.serve_merged(MIX, tokens))
            assert isinstance(error, Forbidden)
            assert (str(culprit) in error.message, error.param) == (True, "merged_adapters")
        s.publish("org/b", tokens={"x"})
        assert isinstance(await failure(s.adapters.serve_merged(MIX, ("y", "z"))), Forbidden)
        assert isinstance(await s.adapters.serve_merged(MIX, ("x", "x")), ServedAdapter)
        assert s.loader.prepared.count(MERGED) == 1

    run(body)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        gone = AdapterRef("hub", "org/gone")
        error = await failure(s.adapters.serve_merged(((A, 1.0), (gone, 1.0)), NOBODY))
        assert isinstance(error, NotFound)
        assert "hub:org/gone" in error.message
        s.publish("org/gone")
        await s.adapters.serve_merged(((A, 1.0), (gone, 1.0)), NOBODY)

    run(body)


def test_a_merge_that_failed_is_remembered_and_its_parts_go_on(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path, refusal_seconds=0.1)
        await asyncio.gather(s.adapters.serve(A, None), s.adapters.serve(B, None))
        s.loader.error = AdapterRefused("the ranks come to 300 (--max-adapter-rank)", param="merged_adapters")
        for _ in range(3):
            error = await failure(s.adapters.serve_merged(MIX, NOBODY))
            assert isinstance(error, AdapterRefused)
            assert (error.message, error.param) == ("the ranks come to 300 (--max-adapter-rank)", "merged_adapters")
        assert s.loader.prepared.count(MERGED) == 1
        assert (await s.adapters.serve(A, None)).directory.is_dir()
        s.loader.error = None
        await s.adapters.serve_merged(((A, 0.5), (B, 0.5)), NOBODY)
        await asyncio.sleep(0.11)
        await s.adapters.serve_merged(MIX, NOBODY)

    run(body)


def test_a_merge_whose_files_were_removed_is_made_again(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        merged = await s.adapters.serve_merged(MIX, NOBODY)
        for file in merged.prepared.files:
            Path(file).unlink()
        assert await s.adapters.serve_merged(MIX, NOBODY) == merged
        assert s.loader.prepared.count(MERGED) == 2
        shutil.rmtree(s.cache)
        await s.adapters.serve_merged(MIX, NOBODY)
        assert s.hub.count("fetch") == 4

    run(body)


def test_a_merge_that_takes_too_long_is_unavailable(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path, prepare_seconds=0.2)
        await asyncio.gather(s.adapters.serve(A, None), s.adapters.serve(B, None))
        s.loader.gate = asyncio.Event()
        assert isinstance(error := await failure(s.adapters.serve_merged(MIX, NOBODY)), Unavailable)
        assert "0.2 s" in error.message

    run(body)


def test_other_callers_of_a_merge_are_served_after_a_cancellation(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.loader.gate = asyncio.Event()
        first, second = (asyncio.create_task(s.adapters.serve_merged(MIX, NOBODY)) for _ in range(2))
        await until(lambda: len(s.loader.prepared) == 2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        s.loader.gate.set()
        assert (await second).prepared.id == MERGED
        assert first.cancelled()

    run(body)


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ((), "0 adapters"),
        (((A, 1.0),) * (MAX_PARTS + 1), "17 adapters"),
        (((A, 1.0), (B, math.nan)), "finite"),
        (((A, math.inf),), "finite"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_anything_is_asked(
    tmp_path: Path, parts: tuple[tuple[AdapterRef, float], ...], complaint: str
) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        error = await failure(s.adapters.serve_merged(parts, (None,) * len(parts)))
        assert isinstance(error, InvalidRequest)
        assert (complaint in error.message, error.param) == (True, "merged_adapters")
        assert s.hub.count("resolve") == 0

    run(body)
