"""Adapters in directories as users arrange them: links, nested runs, hub caches and mounts; and the errors."""

import asyncio
import os
import threading
from pathlib import Path

import pytest
from loguru import logger
from support.scripted_registry import FakeLoader

from motet.api.adapters.local_registry import LocalRegistry
from motet.api.adapters.names import NameRules
from motet.api.server.cli import build_parser
from motet.core.adapter_source import AdapterRef, AdapterSource
from motet.core.errors import AdapterRefused, MotetError, NotFound, Unavailable
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings, load_settings
from motet.plugins.sources import directories
from motet.plugins.sources.local import LocalAdapters

COMMITS = "a" * 40, "b" * 40


def make_adapter(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


def source_over(*roots: Path, follow_links: str = "off") -> LocalAdapters:
    source = LocalAdapters()
    source.configure(Settings(adapter_root=tuple(map(str, roots)), follow_links=follow_links))
    return source


def found(source: AdapterSource, name: str, revision: str | None = None) -> Path:
    """The directory that is served as `name`."""
    ref = AdapterRef("local", name, revision)

    async def both() -> Path:
        return await source.fetch(await source.resolve(ref, None), None, Path())

    return asyncio.run(both())


def refusal(source: AdapterSource, name: str) -> MotetError:
    with pytest.raises(MotetError) as caught:
        found(source, name)
    return caught.value


def listed(source: AdapterSource) -> list[str]:
    """The ids that are listed, each of which can be served."""
    names = [item.ref.id for item in asyncio.run(source.listing())]
    for name in names:
        assert found(source, name).is_dir()
    return names


def hub_cache(place: Path) -> Path:
    """A hub cache with two snapshots of org/tale, whose files are links into blobs/."""
    home = place / "hub" / "models--org--tale"
    (home / "blobs").mkdir(parents=True)
    for commit in COMMITS:
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (home / "blobs" / f"{name}-{commit}").write_text("{}")
            (snapshot / name).symlink_to(f"../../blobs/{name}-{commit}")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMITS[0])
    return place / "hub"


def test_a_link_out_of_the_roots_is_named_and_followed_where_it_is_allowed(tmp_path: Path) -> None:
    experiment = make_adapter(tmp_path / "runs" / "exp12")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "support").symlink_to(experiment)
    strict = source_over(tmp_path / "root")
    error = refusal(strict, "support")
    assert "support is a link that leads out of the adapter roots" in error.message
    assert "--follow-links" in error.message
    assert str(tmp_path) not in error.message
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING")
    assert listed(strict) + listed(strict) == []
    logger.remove(sink)
    assert len(lines) == 1
    assert "root/support is not listed" in lines[0]
    follows = source_over(tmp_path / "root", follow_links="on")
    assert found(follows, "support") == experiment
    assert listed(follows) == ["support"]


def test_a_link_into_another_root_is_followed(tmp_path: Path) -> None:
    run = make_adapter(tmp_path / "runs" / "exp12")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "support").symlink_to(run)
    source = source_over(tmp_path / "root", tmp_path / "runs")
    assert found(source, "support") == run
    assert listed(source) == ["exp12", "support"]


def test_a_link_of_one_file_is_named(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "root" / "a")
    (tmp_path / "secret").write_text("x")
    (adapter / "chat_template.jinja").symlink_to(tmp_path / "secret")
    error = refusal(source_over(tmp_path / "root"), "a")
    assert isinstance(error, AdapterRefused)
    assert "chat_template.jinja of a is a link" in error.message
    (adapter / "adapter_config.json").unlink()
    (adapter / "adapter_config.json").symlink_to(tmp_path / "secret")
    assert listed(source_over(tmp_path / "root")) == []
    assert found(source_over(tmp_path / "root", follow_links="on"), "a") == adapter


def test_kubernetes_volumes_are_served_and_listed_once(tmp_path: Path) -> None:
    make_adapter(tmp_path / "root" / "..2026_11_28" / "support")
    (tmp_path / "root" / "..data").symlink_to("..2026_11_28")
    (tmp_path / "root" / "support").symlink_to("..data/support")
    assert listed(source_over(tmp_path / "root")) == ["support"]


def test_nested_directories_are_listed(tmp_path: Path) -> None:
    make_adapter(tmp_path / "team" / "run" / "checkpoint-500")
    make_adapter(tmp_path / "run1")
    make_adapter(tmp_path / "run1" / "checkpoint-9")
    make_adapter(tmp_path / "1" / "2" / "3" / "4" / "5")
    (tmp_path / "run1" / "loop").symlink_to(tmp_path)
    assert listed(source_over(tmp_path)) == ["run1", "run1/checkpoint-9", "team/run/checkpoint-500"]


def test_what_one_listing_looks_into_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("motet.plugins.sources.adapter_roots.MAX_SCANNED", 5)
    for number in range(9):
        make_adapter(tmp_path / f"a{number}" / "b")
    assert len(asyncio.run(source_over(tmp_path).listing())) < 9


def test_a_root_that_is_an_adapter_has_its_directorys_name(tmp_path: Path) -> None:
    root = make_adapter(tmp_path / "poet")
    make_adapter(root / "checkpoint-500")
    source = source_over(root)
    assert listed(source) == ["checkpoint-500", "poet"]
    assert found(source, "poet") == root


def test_a_hub_cache_lists_its_repositories(tmp_path: Path) -> None:
    root = hub_cache(tmp_path)
    source = source_over(root)
    assert listed(source) == ["org/tale"]
    assert found(source, "org/tale").name == COMMITS[0]
    assert found(source, f"models--org--tale/snapshots/{COMMITS[1]}").name == COMMITS[1]
    (root / "models--org--tale" / "refs" / "main").unlink()
    os.utime(root / "models--org--tale" / "snapshots" / COMMITS[1], (2e9, 2e9))
    assert found(source, "org/tale").name == COMMITS[1]


def test_a_snapshot_as_root_says_which_link_and_flag(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path) / "models--org--tale" / "snapshots" / COMMITS[0]
    assert "--follow-links" in refusal(source_over(snapshot), COMMITS[0]).message
    assert found(source_over(snapshot, follow_links="on"), COMMITS[0]) == snapshot


def test_a_name_with_an_at_sign_is_the_directory_of_that_name(tmp_path: Path) -> None:
    make_adapter(tmp_path / "name")
    dated = make_adapter(tmp_path / "name@v2")
    source = source_over(tmp_path)
    assert found(source, "name", "v2") == dated
    assert found(source, "name@v2") == dated
    revision = asyncio.run(source.resolve(AdapterRef("local", "name"), None)).revision
    assert found(source, "name", revision) == tmp_path / "name"
    with pytest.raises(NotFound, match="revision"):
        found(source, "name", "v3")


async def named(registry: LocalRegistry, name: str, source: str | None) -> AdapterRef:
    ref = await registry.find(name, source)
    assert ref is not None
    return ref


def test_every_listed_id_can_be_named_and_served(tmp_path: Path) -> None:
    for name in ("name", "name@v2", "a b", "a:b", "team/run", "é", "x@y@z"):
        make_adapter(tmp_path / "root" / name)
    source = source_over(tmp_path / "root")
    registry = LocalRegistry({"local": source}, FakeLoader(), NameRules("base", "local", tmp_path / "cache"))

    async def body() -> None:
        entries = await registry.listing()
        assert len(entries) == 7
        for entry in entries:
            for name in filter(None, (str(entry.ref), entry.alias)):
                served = await registry.serve(await named(registry, name, None), None)
                assert served.directory == tmp_path / "root" / entry.ref.id
        served = await registry.serve(await named(registry, "name@v2", "local"), None)
        assert served.directory == tmp_path / "root" / "name@v2"
        path = tmp_path / "root" / "name"
        for name, where in ((str(path), "local"), (f"local:{path}", None)):
            served = await registry.serve(await named(registry, name, where), None)
            assert served.directory == path
        await registry.close()

    asyncio.run(body())


def test_an_absolute_path_is_served_inside_the_roots(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "root" / "a")
    outside = make_adapter(tmp_path / "other")
    source = source_over(tmp_path / "root")
    assert found(source, str(adapter)) == adapter
    error = refusal(source, str(outside))
    assert isinstance(error, NotFound)
    assert "--adapter-root" in error.message
    assert refusal(source, f"{adapter}/../../other").status == 404
    (tmp_path / "root" / "out").symlink_to(outside)
    assert "--follow-links" in refusal(source, str(tmp_path / "root" / "out")).message


def test_a_directory_without_a_config_says_so(tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "lora.gguf").touch()
    make_adapter(tmp_path / "run" / "checkpoint-500")
    source = source_over(tmp_path)
    assert "the directory 'gguf' has no adapter_config.json, but lora.gguf" in refusal(source, "gguf").message
    assert "checkpoint-500" in refusal(source, "run").message
    assert "adapter_config.json" not in refusal(source, "absent").message
    second = make_adapter(tmp_path / "second" / "gguf")
    assert found(source_over(tmp_path, tmp_path / "second"), "gguf") == second
    assert "--adapter-root" in refusal(source_over(), "any").message


def test_a_directory_that_hangs_times_out_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directories, "RESPONSE_SECONDS", 0.2)
    make_adapter(tmp_path / "hung")
    good = make_adapter(tmp_path / "good")
    source, released = source_over(tmp_path), threading.Event()
    find = source.roots.find

    def hangs(name: str) -> Path:
        if name == "hung":
            released.wait(20)
        return find(name)

    monkeypatch.setattr(source.roots, "find", hangs)

    async def body() -> None:
        calls = [source.resolve(AdapterRef("local", "hung"), None) for _ in range(100)]
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, Unavailable)
            assert outcome.code == "source_unavailable"
        resolved = await source.resolve(AdapterRef("local", "good"), None)
        assert await source.fetch(resolved, None, tmp_path) == good
        released.set()

    asyncio.run(body())


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"])
def test_a_fifo_does_not_block(tmp_path: Path, name: str) -> None:
    adapter = make_adapter(tmp_path / "a")
    (adapter / name).unlink(missing_ok=True)
    os.mkfifo(adapter / name)
    source = source_over(tmp_path)
    if name == "adapter_config.json":
        assert refusal(source, "a").status == 404
    else:
        assert found(source, "a") == adapter  # the loader and the template finder read regular files only


@pytest.mark.parametrize(
    ("model", "fits"),
    [
        ("smollm2", True),
        ("hub:HuggingFaceTB/SmolLM2-135M-Instruct@main", True),
        ("org/other", False),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", True),
        ("other.gguf", False),
    ],
)
def test_the_demo_adapters_are_listed_beside_their_base_alone(model: str, fits: bool) -> None:
    demo = PluginRegistry.load(["motet.plugins.demo"], installed=False).adapter_sources.items["demo"]
    demo.configure(Settings(model=model))
    assert len(asyncio.run(demo.listing())) == (3 if fits else 0)


def test_a_directory_with_the_demo_adapters_base_is_recognised(tmp_path: Path) -> None:
    config = '{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}'
    (tmp_path / "config.json").write_text(config)
    demo = PluginRegistry.load(["motet.plugins.demo"], installed=False).adapter_sources.items["demo"]
    demo.configure(Settings(model=str(tmp_path)))
    assert len(asyncio.run(demo.listing())) == 3
    (tmp_path / "config.json").write_text(config.replace("576", "96"))
    demo.configure(Settings(model=str(tmp_path)))
    assert asyncio.run(demo.listing()) == ()


@pytest.mark.parametrize(
    ("flags", "chosen"), [(["--follow-links"], "on"), (["--follow-links", "off"], "off"), ([], "off")]
)
def test_follow_links_is_a_flag_alone_or_with_a_value(flags: list[str], chosen: str) -> None:
    given = vars(build_parser().parse_args(["serve", *flags, "--port", "0"]))
    assert load_settings(given, {}).follow_links == chosen
