"""`hub` against a fake hub: what each refusal means, whose token is sent, and what is downloaded."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fake_hub import Hub

from motet.core.adapter_source import AdapterRef
from motet.core.errors import (
    AdapterRefused,
    Forbidden,
    MotetError,
    NotFound,
    SourceOffline,
    StartupError,
    Unauthenticated,
    Unavailable,
)
from motet.core.settings import Settings
from motet.plugins.sources import hub as hub_plugin
from motet.plugins.sources.hub import HubAdapters, HubModels

ADAPTER = {
    "adapter_config.json": b'{"r": 8}',
    "adapter_model.safetensors": b"weights",
    "tokenizer_config.json": b"{}",
    "README.md": b"# About",
    "training_args.bin": b"pickle",
    "checkpoint-1/adapter_model.safetensors": b"older",
}
SECRET = "hf_reader_secret"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_operator")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf-cache"))
        monkeypatch.delenv("MOTET_HUB_TOKEN", raising=False)
        running.known_tokens.add("hf_operator")
        yield running


@pytest.fixture
def source(hub: Hub) -> HubAdapters:
    return configured()


def configured() -> HubAdapters:
    source = HubAdapters()
    source.configure(Settings())
    return source


def ref(name: str, revision: str | None = None) -> AdapterRef:
    return AdapterRef("hub", name, revision)


def get(source: HubAdapters, name: str, into: Path, token: str | None = None) -> Path:
    async def both() -> Path:
        return await source.fetch(await source.resolve(ref(name), token), token, into)

    return asyncio.run(both())


def refusal(source: HubAdapters, name: str, token: str | None = None, revision: str | None = None) -> MotetError:
    with pytest.raises(MotetError) as caught:
        asyncio.run(source.resolve(ref(name, revision), token))
    assert SECRET not in caught.value.message
    return caught.value


def test_an_adapter_is_resolved_to_its_commit_and_only_its_files_come(
    hub: Hub, source: HubAdapters, tmp_path: Path
) -> None:
    commit = hub.add("org/pirate", ADAPTER).commit
    resolved = asyncio.run(source.resolve(ref("org/pirate", "main"), None))
    assert resolved.revision == commit
    (into := tmp_path / "into").mkdir()
    assert asyncio.run(source.fetch(resolved, None, into)) == into
    assert {path.name: path.read_bytes() for path in into.iterdir()} == {
        name: ADAPTER[name] for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json")
    }


def test_a_private_adapter_is_for_those_who_may_read_it(hub: Hub, source: HubAdapters, tmp_path: Path) -> None:
    hub.add("org/private", ADAPTER, tokens=[SECRET])
    hub.known_tokens.add("hf_stranger")
    (into := tmp_path / "into").mkdir()
    assert (get(source, "org/private", into, SECRET) / "adapter_config.json").is_file()
    assert isinstance(refusal(source, "org/private"), NotFound)
    assert isinstance(refusal(source, "org/private", "hf_stranger"), NotFound)
    assert isinstance(refusal(source, "org/private", "hf_unknown"), Unauthenticated)
    hub.repositories["org/private"].tokens = []
    assert isinstance(refusal(source, "org/private", SECRET), NotFound)


def test_a_gated_adapter_wants_a_token_with_access(hub: Hub, source: HubAdapters) -> None:
    hub.add("org/gated", ADAPTER, tokens=["hf_member"], gated=True)
    hub.known_tokens.add(SECRET)
    assert isinstance(refusal(source, "org/gated"), Unauthenticated)
    assert isinstance(refusal(source, "org/gated", SECRET), Forbidden)
    assert asyncio.run(source.resolve(ref("org/gated"), "hf_member")).revision


def test_the_operators_login_is_never_used_for_a_caller(hub: Hub, source: HubAdapters) -> None:
    hub.add("org/operators", ADAPTER, tokens=["hf_operator"])
    assert os.environ["HF_TOKEN"] == "hf_operator"
    assert isinstance(refusal(source, "org/operators"), NotFound)


def test_motet_hub_token_stands_in_where_the_operator_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/shared", ADAPTER, tokens=["hf_for_all"])
    hub.known_tokens.add(SECRET)
    monkeypatch.setenv("MOTET_HUB_TOKEN", "hf_for_all")
    source = configured()
    assert asyncio.run(source.resolve(ref("org/shared"), None)).revision
    assert isinstance(refusal(source, "org/shared", SECRET), NotFound)  # a caller's own token comes first


def test_what_is_missing_is_named(hub: Hub, source: HubAdapters) -> None:
    hub.add("org/model", {"config.json": b"{}"})
    assert isinstance(refusal(source, "org/absent"), NotFound)
    assert isinstance(refusal(source, "org/model"), AdapterRefused)
    assert "adapter_config.json" in refusal(source, "org/model").message
    hub.add("org/pirate", ADAPTER)
    assert isinstance(refusal(source, "org/pirate", revision="no-such-branch"), NotFound)
    assert "revision" in refusal(source, "org/pirate", revision="no-such-branch").message


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "../x", "a/..", "a/b?c", "-a/b", "a/b--c", "a/" + "b" * 97, "ä/b", ""]
)
def test_what_is_no_repository_is_refused_without_asking(hub: Hub, source: HubAdapters, name: str) -> None:
    assert isinstance(refusal(source, name), NotFound)
    assert hub.requests == []


def test_a_token_that_is_none_is_refused_without_asking(hub: Hub, source: HubAdapters) -> None:
    error = refusal(source, "org/pirate", SECRET + "\r\nX-Evil: 1")
    assert isinstance(error, Unauthenticated)
    assert hub.requests == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_in_trouble_is_unavailable(hub: Hub, source: HubAdapters, status: int) -> None:
    hub.failing = status
    error = refusal(source, "org/pirate", SECRET)
    assert isinstance(error, Unavailable)
    assert (error.code, str(status) in error.message) == ("source_unavailable", True)


def test_a_hub_that_is_slow_away_or_forbidden_is_unavailable(
    hub: Hub, source: HubAdapters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_plugin, "REQUEST_SECONDS", 0.05)
    hub.delay = 0.3
    assert "in time" in refusal(source, "org/pirate").message
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        offline = refusal(source, "org/pirate")
        assert (type(offline), offline.status) == (SourceOffline, 404)
        assert "HF_HUB_OFFLINE" in offline.message
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    error = refusal(configured(), "org/pirate", SECRET)
    assert isinstance(error, Unavailable)
    assert "cannot be reached" in error.message


def test_only_safetensors_is_read(hub: Hub, source: HubAdapters, tmp_path: Path) -> None:
    hub.add("org/pickled", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"})
    with pytest.raises(AdapterRefused, match=r"adapter_model\.bin is not supported, since unpickling runs code"):
        get(source, "org/pickled", tmp_path)
    hub.add("org/empty", {"adapter_config.json": b"{}"})
    with pytest.raises(AdapterRefused, match=r"org/empty has no adapter_model\.safetensors$"):
        get(source, "org/empty", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert hub.count("GET", ".bin") == 0


@pytest.mark.parametrize(
    ("file", "size"),
    [("adapter_model.safetensors", (8 << 30) + 1), ("tokenizer_config.json", (64 << 20) + 1)],
)
def test_what_is_too_large_is_refused_before_it_is_downloaded(
    hub: Hub, source: HubAdapters, tmp_path: Path, file: str, size: int
) -> None:
    hub.add("org/huge", ADAPTER).sizes[file] = size
    with pytest.raises(AdapterRefused, match=str(size)):
        get(source, "org/huge", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_token_revoked_before_the_download_stops_it(hub: Hub, source: HubAdapters, tmp_path: Path) -> None:
    repository = hub.add("org/private", ADAPTER, tokens=[SECRET])
    resolved = asyncio.run(source.resolve(ref("org/private"), SECRET))
    repository.tokens = []
    with pytest.raises(NotFound):
        asyncio.run(source.fetch(resolved, SECRET, tmp_path))


def test_a_cancelled_download_ends_and_leaves_nothing(hub: Hub, source: HubAdapters, tmp_path: Path) -> None:
    hub.add("org/pirate", ADAPTER)
    (into := tmp_path / "into").mkdir()

    async def cancelled() -> None:
        resolved = await source.resolve(ref("org/pirate"), None)
        hub.delay = 0.1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.15):
                await source.fetch(resolved, None, into)

        while source._fetchers._users:
            await asyncio.sleep(0.01)

    asyncio.run(cancelled())
    assert not into.exists()
    assert hub.count("GET", "adapter_model.safetensors") == 0


MODEL = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.safetensors": b"again",
}


def test_a_base_model_is_downloaded_with_the_operators_login(hub: Hub) -> None:
    hub.add("org/base", MODEL, tokens=["hf_operator"])
    location = HubModels().locate("hub:org/base@main")
    assert (location.kind, location.name) == ("transformers", "org/base")
    assert {"org/base", "hub:org/base", "org/base@main"} <= set(location.aliases)
    found = {path.relative_to(location.path).as_posix() for path in location.path.rglob("*") if path.is_file()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json"}


def test_a_base_model_that_cannot_be_had_is_a_startup_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b""})
    with pytest.raises(StartupError, match="safetensors"):
        HubModels().locate("org/pickled")
    with pytest.raises(StartupError, match="HF_TOKEN"):
        HubModels().locate("org/absent")
    monkeypatch.setenv("HF_ENDPOINT", "ftp://example.org")
    with pytest.raises(StartupError, match="HF_ENDPOINT"):
        HubModels().locate("org/base")


def test_the_operator_hears_of_a_login_where_it_can_help_and_the_name_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def startup_error() -> str:
        with pytest.raises(StartupError) as caught:
            HubModels().locate("org/absent")
        return caught.value.message

    assert startup_error().endswith(
        "this token has no access to it (for a private or gated model, run `hf auth login` or set HF_TOKEN)"
    )
    monkeypatch.delenv("HF_TOKEN")
    assert (
        startup_error()
        == "--model org/absent: does not exist or is private; if it is private, run `hf auth login` or set HF_TOKEN"
    )
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert startup_error() == "--model org/absent: the hub cannot be reached"
