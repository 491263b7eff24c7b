"""Every page: links resolve, paths, flags and variables exist, and code blocks parse."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from docs.pages import NAMES, ROOT, anchors, code_words, fences, links, read

from motet.api.server.cli import build_parser
from motet.core.settings import Settings, load_settings

# Variables that are not settings: read where they are needed (core/paths.py, api/server/cli.py, plugins/sources/hub.py,
# engine/distributed/host_key.py).
OTHER_VARIABLES = {"MOTET_CACHE", "MOTET_CONFIG", "MOTET_HOST_KEY", "MOTET_HUB_TOKEN"}
# Other programs' flags that the pages mention.
LORAX_FLAGS = {"--max-batch-total-tokens", "--max-batch-prefill-tokens", "--num-shard", "--max-active-adapters"}
LORAX_FLAGS |= {"--adapter-source", "--cors-allow-origin"}
FOREIGN_FLAGS = {
    "--build",
    "--build-arg",
    "--profile",
    "--constraint",
    "--editable",
    "--no-build-isolation",
    "--no-deps",
    "--extra-index-url",
}
FOREIGN_FLAGS |= LORAX_FLAGS | {"--nproc-per-node", "--no-python"}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# `motet/` is the package's name, not a folder.
PATH = re.compile(r"\.?(?:core|plugins|engine|api|tests|docker|docs|ci)/[\w./-]*")


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """Every flag of a parser and of its commands."""
    options = set()
    for action in parser._actions:
        options |= {option for option in action.option_strings if option.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            options = options.union(*(flags(command) for command in action.choices.values()))
    return options


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name: str) -> None:
    lost = []
    for link in links(name):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("name", NAMES)
def test_paths_exist(name: str) -> None:
    paths = [word.partition(":")[0] for word in code_words(name) if PATH.fullmatch(word.partition(":")[0])]
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_flags_exist(name: str) -> None:
    scripts = [p.read_text() for folder in ("benchmarks", "training") for p in (ROOT / "tests" / folder).glob("*.py")]
    known = flags(build_parser()).union(FOREIGN_FLAGS, *(re.findall(r'"(--[a-z-]+)"', text) for text in scripts))
    assert set(FLAG.findall(read(name))) - known == set()


@pytest.mark.parametrize("name", NAMES)
def test_variables_exist(name: str) -> None:
    settings = {f"MOTET_{field.name.upper()}" for field in dataclasses.fields(Settings)}
    assert set(re.findall(r"\bMOTET_[A-Z_]+\b(?!…)", read(name))) - settings - OTHER_VARIABLES == set()


def test_variables_that_are_not_settings_are_read_in_the_code() -> None:
    sources = "".join(
        path.read_text() for folder in ("core", "plugins", "engine", "api") for path in (ROOT / folder).rglob("*.py")
    )
    assert {name for name in OTHER_VARIABLES if f'environ.get("{name}"' not in sources} == set()


@pytest.mark.parametrize("name", NAMES)
def test_code_blocks_parse(name: str, tmp_path: Path) -> None:
    for fence in fences(name):
        match fence.language:
            case "python":
                compile(fence.text, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            case "bash":
                subprocess.run(["bash", "-n"], input=fence.text, text=True, check=True)
            case "json":
                json.loads(fence.text)
            case "toml" if fence.file == "motet.toml":
                (tmp_path / "motet.toml").write_text(fence.text)
                load_settings({}, {}, tmp_path / "motet.toml")
            case "yaml":
                assert yaml.safe_load(fence.text)
            case language:
                assert language in ("", "toml", "text", "mermaid"), language


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_and_demo_adapters_exist(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|^)make ([a-z][a-z-]*)", read(name), re.MULTILINE)
    assert [target for target in targets if f"\n{target}:" not in makefile] == []
    adapters = {path.name for path in (ROOT / "plugins" / "demo" / "adapters").iterdir()}
    assert set(re.findall(r"\bdemo:(\w+)", read(name))) - adapters == set()


def test_the_index_names_every_page() -> None:
    pages = {Path(name).name for name in NAMES if name.startswith("docs/")} - {"index.md"}
    assert set(links("docs/index.md")) & pages == pages
