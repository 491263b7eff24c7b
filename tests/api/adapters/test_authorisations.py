"""How long a source's permission is cached: per caller, while the source responds and while it fails."""

import asyncio
from pathlib import Path

import pytest
from support.scripted_registry import Published, RegistrySetup, ScriptedSource, failure, run, until

from motet.api.adapters.authorisations import Authorisations, PublicRecords
from motet.api.adapters.limits import LoadLimits
from motet.core.adapter_source import AdapterRef, ResolvedAdapter
from motet.core.errors import Forbidden, MotetError, NotFound, SourceOffline, Unavailable

PIRATE = AdapterRef("hub", "org/pirate")
COMMIT = "0123456789" * 4
PINNED = AdapterRef("hub", "org/pirate", COMMIT)
OUTAGES = [Unavailable("503"), OSError("refused"), KeyError("malformed answer"), SourceOffline("offline")]


def setup(cache: Path, **limits: float) -> RegistrySetup:
    return RegistrySetup(cache, **{"authorisation_seconds": 60, "stale_seconds": 3600, "unknown_seconds": 10, **limits})


def resolves(s: RegistrySetup) -> int:
    return s.hub.count("resolve")


def test_twenty_requests_are_one_question(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish(tokens={"a"})
        for _ in range(20):
            await s.adapters.serve(PIRATE, "a")
        assert resolves(s) == 1
        s.now += 59
        await s.adapters.serve(PIRATE, "a")
        assert resolves(s) == 1
        s.now += 2
        s.publish(revision="r2", tokens={"a"})
        assert (await s.adapters.serve(PIRATE, "a")).prepared.id == "org/pirate r2"
        assert resolves(s) == 2

    run(body)


def test_a_revoked_token_is_refused_within_the_set_time_and_a_strangers_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish(tokens={"a", "b"})
        await s.adapters.serve(PIRATE, "a")
        for token in ("stranger", None, "A", "a "):
            assert isinstance(await failure(s.adapters.serve(PIRATE, token)), Forbidden)
        s.publish(tokens={"b"})
        s.now += 61
        assert isinstance(await failure(s.adapters.serve(PIRATE, "a")), Forbidden)
        s.hub.errors["resolve"] = Unavailable("down")  # the refusal has ended the grant
        assert isinstance(await failure(s.adapters.serve(PIRATE, "a")), Unavailable)

    run(body)


def test_what_is_readable_without_a_token_is_granted_to_all(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish()
        await s.adapters.serve(PIRATE, None)
        for number in range(10):
            await s.adapters.serve(PIRATE, f"token-{number}")
        assert resolves(s) == 1

    run(body)


def test_a_token_of_the_sources_own_makes_nothing_public(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)

        async def stands_in(ref: AdapterRef, token: str | None) -> ResolvedAdapter:
            s.hub.calls.append(("resolve", ref.id, token))
            if token:
                raise NotFound("not for this token")
            return ResolvedAdapter(ref, "r1", used_credentials=True)

        s.publish()
        s.hub.resolve = stands_in  # type: ignore[method-assign]
        await s.adapters.serve(PIRATE, None)
        assert isinstance(await failure(s.adapters.serve(PIRATE, "other")), NotFound)
        assert list((tmp_path / "authorisations").glob("*")) == []

    run(body)


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda error: type(error).__name__)
def test_a_loaded_adapter_outlives_its_sources_outage(tmp_path: Path, outage: Exception) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish(tokens={"a"})
        await s.adapters.serve(PIRATE, "a")
        s.hub.errors["resolve"] = outage
        s.now += 61
        for _ in range(20):
            await s.adapters.serve(PIRATE, "a")
        assert resolves(s) == 2  # a failing source is left alone for some seconds
        s.now += 6
        await s.adapters.serve(PIRATE, "a")
        assert resolves(s) == 3
        assert isinstance(await failure(s.adapters.serve(PIRATE, "b")), MotetError)  # never granted
        s.now += 3600
        assert (await failure(s.adapters.serve(PIRATE, "a"))).status in (404, 503)

    run(body)


def test_a_warm_adapter_does_not_wait_for_a_source_that_hangs(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path, refresh_wait_seconds=0.02)
        s.publish(tokens={"a"})
        await s.adapters.serve(PIRATE, "a")
        s.hub.gates["resolve"] = asyncio.Event()
        s.now += 61
        for _ in range(20):
            await s.adapters.serve(PIRATE, "a")
            s.now += 6
        assert resolves(s) == 2  # one question, still under way
        s.publish(revision="r2", tokens=set())
        s.hub.gates["resolve"].set()
        await until(lambda: len(s.hub.verdicts) > 2)
        await asyncio.sleep(0.01)
        assert isinstance(await failure(s.adapters.serve(PIRATE, "a")), Forbidden)  # its answer was a refusal

    run(body)


def test_a_public_commit_on_disk_is_never_asked_about_again(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish(revision=COMMIT)
        await s.adapters.serve(PINNED, None)
        s.now += 1e9
        await s.adapters.serve(PINNED, "anybody")
        assert resolves(s) == 1
        anew = setup(tmp_path)  # a new process over the same cache
        await anew.adapters.serve(PINNED, None)
        assert (resolves(anew), anew.hub.count("fetch")) == (0, 0)

    run(body)


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda error: type(error).__name__)
def test_after_a_restart_what_was_public_is_served_without_its_source(tmp_path: Path, outage: Exception) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish()
        s.publish("org/private", tokens={"a"})
        await s.adapters.serve(PIRATE, None)
        await s.adapters.serve(AdapterRef("hub", "org/private"), "a")
        anew = setup(tmp_path)
        anew.hub.errors["resolve"] = outage
        for _ in range(5):
            assert (await anew.adapters.serve(PIRATE, None)).prepared.id == "org/pirate r1"
        assert resolves(anew) == 1
        for token in ("a", None):
            assert (await failure(anew.adapters.serve(AdapterRef("hub", "org/private"), token))).status in (404, 503)
        assert (await failure(anew.adapters.serve(AdapterRef("hub", "org/other"), None))).status in (404, 503)

    run(body)


def test_what_is_public_no_longer_is_not_served_after_a_restart(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish()
        await s.adapters.serve(PIRATE, None)
        s.publish(tokens={"a"})
        s.now += 61
        assert isinstance(await failure(s.adapters.serve(PIRATE, None)), Forbidden)
        anew = setup(tmp_path)
        anew.hub.errors["resolve"] = Unavailable("down")
        assert isinstance(await failure(anew.adapters.serve(PIRATE, None)), Unavailable)

    run(body)


def test_an_unknown_name_is_asked_for_once_in_a_while_and_by_each_caller(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        for _ in range(10):
            assert isinstance(await failure(s.adapters.serve(PIRATE, None)), NotFound)
        assert resolves(s) == 1
        s.publish(tokens={"a"})
        await s.adapters.serve(PIRATE, "a")
        s.publish()
        s.now += 11
        await s.adapters.serve(PIRATE, None)

    run(body)


def test_a_source_of_local_files_is_asked_each_time(tmp_path: Path) -> None:
    async def body() -> None:
        source = ScriptedSource(local_files=True)
        records = PublicRecords(tmp_path)
        authorisations = Authorisations(source, LoadLimits(), records, lambda: 0.0)
        assert isinstance(await failure(authorisations.authorise(PIRATE, None)), NotFound)
        for revision in ("r1", "r2"):
            source.published["org/pirate"] = Published(revision)
            assert (await authorisations.authorise(PIRATE, None)).resolved.revision == revision
        source.errors["resolve"] = Unavailable("a file is being replaced")
        assert (await authorisations.authorise(PIRATE, None)).resolved.revision == "r2"
        source.published["org/pirate"] = Published("r3")
        del source.errors["resolve"]
        assert (await authorisations.authorise(PIRATE, None)).resolved.revision == "r3"
        await authorisations.close()

    run(body)


def test_a_grant_whose_files_cannot_be_had_is_asked_for_again(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path)
        s.publish()
        s.hub.errors["fetch"] = NotFound("that commit has been removed")
        assert isinstance(await failure(s.adapters.serve(PIRATE, None)), NotFound)
        del s.hub.errors["fetch"]
        s.publish(revision="r2")
        assert (await s.adapters.serve(PIRATE, None)).prepared.id == "org/pirate r2"

    run(body)


def test_grants_are_bounded_and_hold_no_token(tmp_path: Path) -> None:
    async def body() -> None:
        s = setup(tmp_path, authorisations=3)
        for number in range(9):
            s.publish(f"org/{number}", tokens={"hf_secret"})
            await s.adapters.serve(AdapterRef("hub", f"org/{number}"), "hf_secret")
            await failure(s.adapters.serve(AdapterRef("hub", f"absent/{number}"), "hf_secret"))
        kept = s.registry._authorisations["hub"]
        assert (len(kept._grants), len(kept._unknown)) == (3, 3)
        assert "hf_secret" not in repr((kept._grants, kept._unknown, vars(kept._resolving)))

    run(body)


def test_a_wrong_return_value_names_the_plugins_class(tmp_path: Path) -> None:
    async def nothing(*_: object) -> None:
        return None

    async def body() -> None:
        s = setup(tmp_path)
        s.publish()
        resolve, s.hub.resolve = s.hub.resolve, nothing  # type: ignore[assignment, method-assign]
        error = await failure(s.adapters.serve(PIRATE, None))
        assert "scripted_registry.ScriptedSource.resolve returned NoneType; expected ResolvedAdapter" in error.message
        s.hub.resolve, s.hub.fetch = resolve, nothing  # type: ignore[assignment, method-assign]
        error = await failure(s.adapters.serve(PIRATE, None))
        assert "scripted_registry.ScriptedSource.fetch returned NoneType; expected Path" in error.message

    run(body)
