"""How `model` and `adapter_source` name an adapter."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger
from support.scripted_registry import FakeLoader, RegistrySetup, ScriptedSource, failure, run

from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import AdapterNames, NameRules, name_rules
from motet.core.adapter_source import AdapterListing, AdapterRef
from motet.core.deployment import Deployment
from motet.core.errors import InvalidRequest, NotFound, StartupError
from motet.core.settings import Settings
from motet.plugins.sources.smollm2 import Smollm2


def test_each_form_of_a_name(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.demo, "demo", "pirate", "smollm2")
        names = {
            "": None,
            "smollm2": None,
            "pirate": AdapterRef("demo", "pirate"),
            "demo:pirate": AdapterRef("demo", "pirate"),
            "demo:absent": AdapterRef("demo", "absent"),
            "hub:org/name@v1": AdapterRef("hub", "org/name", "v1"),
            "org/name": AdapterRef("hub", "org/name"),
            "org/name@refs/pr/1": AdapterRef("hub", "org/name", "refs/pr/1"),
        }
        for text, ref in names.items():
            assert await s.adapters.find(text, None) == ref
        assert await s.adapters.find("org/name@v1", "demo") == AdapterRef("demo", "org/name@v1")
        assert await s.adapters.find("smollm2", "demo") == AdapterRef("demo", "smollm2")
        assert s.hub.count("resolve") + s.demo.count("resolve") == 0

    run(body)


NO_ADAPTERS = ["gpt-4", "s3:bucket/x", "a/b/c", "hub:", "hub:@v1", "hub:org/name@", "demo:../x", "demo:a/../x"]
NO_ADAPTERS += ["de\u202emo:x", "a\nb", "\0", "x" * 513, "/etc/passwd", "hub", "SMOLLM2", " "]


@pytest.mark.parametrize("model", NO_ADAPTERS)
def test_what_can_be_no_adapter_is_not_found(tmp_path: Path, model: str) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        error = await failure(s.adapters.find(model, None))
        assert isinstance(error, NotFound)
        assert (error.param, error.code) == ("model", "model_not_found")
        assert s.hub.count("resolve") == 0

    run(body)


def test_an_unknown_model_error_names_the_models_route(tmp_path: Path) -> None:
    async def body() -> None:
        error = await failure(RegistrySetup(tmp_path).adapters.find("gpt-4", None))
        assert isinstance(error, NotFound)
        assert "GET /v1/models" in error.message
        assert "smollm2" in error.message

    run(body)


def test_an_unknown_source_is_named_with_the_known_ones(tmp_path: Path) -> None:
    async def body() -> None:
        error = await failure(RegistrySetup(tmp_path).adapters.find("x", "pbase"))
        assert isinstance(error, InvalidRequest)
        assert error.param == "adapter_source"
        assert "demo, hub" in error.message

    run(body)
    with pytest.raises(StartupError, match="--default-source"):
        LocalRegistry({}, FakeLoader(), NameRules("base", "hub", tmp_path))


def test_an_alias_that_two_sources_claim_is_refused(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.hub, "hub", "pirate")
        s.listed(s.demo, "demo", "pirate", "terse")
        error = await failure(s.adapters.find("pirate", None))
        assert isinstance(error, InvalidRequest)
        assert "demo:pirate or hub:pirate" in error.message
        listing = await s.adapters.listing()
        assert [(str(item.ref), item.alias) for item in listing] == [
            ("demo:pirate", None),
            ("demo:terse", "terse"),
            ("hub:pirate", None),
        ]

    run(body)


def test_a_source_that_cannot_be_listed_takes_no_alias_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.api.adapters.listing.LISTING_SECONDS", 0.0)

    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.demo, "demo", "terse")
        s.demo.aliases.append(AdapterListing(AdapterRef("hub", "org/evil"), alias="pirate"))
        assert len(await s.adapters.listing()) == 1  # no source speaks for another
        s.demo.errors["listing"] = OSError("away")
        s.hub.errors["listing"] = KeyError("broken")
        assert await s.adapters.find("terse", None) == AdapterRef("demo", "terse")

    run(body)


SAFE = st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="@.")
IDS = st.text(SAFE, min_size=1, max_size=40)


@given(id=IDS, revision=st.none() | IDS)
def test_a_reference_reads_back_as_it_is_written(id: str, revision: str | None) -> None:
    ref = AdapterRef("demo", id, revision)
    names = AdapterNames({"demo": ScriptedSource()}, NameRules("smollm2", "demo", Path()))
    assert asyncio.run(names.find(str(ref), None)) == ref


@pytest.mark.parametrize("name", ["org/base", "hub:org/base", "org/base@v1", "served", "other"])
def test_the_bases_own_hub_id_names_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    aliases = ("org/base", "hub:org/base", "org/base@v1", "hub:org/base@v1")
    deployment = Deployment(Settings(model_alias=("other",)), "", "served", "", "", "", 0, "", model_aliases=aliases)
    monkeypatch.setenv("MOTET_CACHE", str(tmp_path))

    async def body() -> None:
        adapters = LocalRegistry({"hub": ScriptedSource()}, FakeLoader(), name_rules(deployment))
        assert await adapters.find(name, None) is None
        assert await adapters.find("org/base", "hub") == AdapterRef("hub", "org/base")  # a source's own id stays one

    run(body)
    assert "HuggingFaceTB/SmolLM2-135M-Instruct" in Smollm2().locate("smollm2").aliases


@pytest.mark.parametrize(
    ("model", "meant"),
    [
        ("pirat", "pirate"),
        ("smolm2", "smollm2"),
        ("demo:pirat", "pirate"),
        ("team/poet", "demo:team/poet"),
        ("completely-other", None),
        ("hub:org/unlike", None),
    ],
)
def test_a_name_that_is_nearly_right_is_answered_with_the_right_one(
    tmp_path: Path, model: str, meant: str | None
) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.demo, "demo", "pirate", "terse")
        s.demo.aliases.append(AdapterListing(AdapterRef("demo", "team/poet")))

        async def served() -> None:
            ref = await s.adapters.find(model, None)
            assert ref is not None
            await s.adapters.serve(ref, None)

        error = await failure(served())
        assert (error.status, error.code) == (404, "model_not_found")
        assert ("did you mean" in error.message) == (meant is not None)
        assert meant is None or f"(did you mean {meant}?)" in error.message

    run(body)


def test_a_listing_that_fails_is_logged_once_with_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.api.adapters.listing.LISTING_SECONDS", 0.0)
    lines: list[str] = []

    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.demo, "demo", "terse")
        s.hub.errors["listing"] = KeyError("the bucket has no index")
        for _ in range(5):
            assert len(await s.adapters.listing()) == 1
            await asyncio.sleep(0.02)
        s.hub.errors["listing"] = OSError("quite another")
        await asyncio.sleep(0.02)
        await s.adapters.listing()
        s.hub.listing = lambda: asyncio.sleep(0, ["not a listing"])  # type: ignore[method-assign, assignment]
        await asyncio.sleep(0.02)
        assert len(await s.adapters.listing()) == 1

    sink = logger.add(lines.append, level="WARNING")
    try:
        run(body)
    finally:
        logger.remove(sink)
    listed = [line for line in lines if "cannot be listed" in line]
    assert len(listed) == 3
    assert "the bucket has no index" in listed[0]
    assert "scripted_registry.ScriptedSource" in listed[0]
    assert "AdapterListing" in listed[2]


def test_the_first_requests_all_wait_for_the_first_listing(tmp_path: Path) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.demo, "demo", "terse")
        found = await asyncio.gather(*(s.adapters.find("terse", None) for _ in range(20)))
        assert set(found) == {AdapterRef("demo", "terse")}

    run(body)


def test_a_source_that_hangs_delays_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.api.adapters.listing.LISTING_SECONDS", 0.0)
    monkeypatch.setattr("motet.api.adapters.listing.LISTING_WAIT", 0.01)

    async def body() -> None:
        s = RegistrySetup(tmp_path)
        s.listed(s.demo, "demo", "terse")
        await s.adapters.listing()
        s.hub.gates["listing"] = asyncio.Event()
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            for _ in range(50):
                assert await s.adapters.find("terse", None) == AdapterRef("demo", "terse")
        assert s.hub.count("listing") == 2
        await s.registry.close()

    run(body)
