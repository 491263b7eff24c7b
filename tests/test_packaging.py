"""The package list, the repository's top level and the dependencies say what the tree says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE_FOLDERS = ("core", "plugins", "engine", "api")
ROOT_PACKAGE = Path("api/motet")
TOP_LEVEL = {*PACKAGE_FOLDERS, "tests", "docker", "docs", "pyproject.toml"}
TOP_LEVEL |= {"README.md", "Makefile", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", ".ci"}

# Builds only beside an installed torch, so that no requirement list can hold it: `make install-cuda` installs it.
BUILT_APART = {"flash_attn"}
# transformers imports it to read GGUF files; nothing here does.
USED_BY_OTHERS = {"accelerate", "gguf"}


def project() -> dict[str, Any]:
    """The [project] and [tool] tables of pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def distribution_module(requirement: str) -> str:
    """The module that a requirement such as `pyzmq>=26` brings."""
    name = re.split(r"[^\w.-]", requirement)[0].lower().replace("-", "_")
    return {"pyzmq": "zmq"}.get(name, name)


def third_party_imports() -> set[str]:
    """Top-level modules that the four packages import, other than the standard library and each other."""
    found: set[str] = set()
    for folder in PACKAGE_FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add((node.module or "").split(".")[0])
    return found - set(sys.stdlib_module_names) - {"motet"}


def test_package_list_equals_the_tree() -> None:
    inits = [init for folder in PACKAGE_FOLDERS for init in (ROOT / folder).rglob("__init__.py")]
    folders = {init.parent.relative_to(ROOT) for init in inits}
    tree = sorted("motet." + ".".join(folder.parts) for folder in folders - {ROOT_PACKAGE})
    setuptools = project()["tool"]["setuptools"]
    assert setuptools["packages"] == ["motet", *tree]
    own = {f"motet.{folder}": folder for folder in PACKAGE_FOLDERS}
    assert setuptools["package-dir"] == {"motet": ROOT_PACKAGE.as_posix(), **own}


def test_every_python_file_lies_in_a_package() -> None:
    """A folder without __init__.py works in an editable install and is missing from the wheel."""
    files = [path for folder in PACKAGE_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert [str(path) for path in files if not (path.parent / "__init__.py").is_file()] == []


def test_top_level_is_the_agreed_one() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {name.split("/")[0] for name in listed.split("\0") if name}
    visible = {entry for entry in entries if not entry.startswith(".")} | (entries & {".ci"})
    assert visible == TOP_LEVEL


def test_dependencies_are_what_is_imported() -> None:
    tables = project()["project"]
    extras = [
        requirement for name, extra in tables["optional-dependencies"].items() if name != "dev" for requirement in extra
    ]
    required = {distribution_module(requirement) for requirement in tables["dependencies"]}
    optional = {distribution_module(requirement) for requirement in extras}
    imported = third_party_imports()
    assert imported - required - optional - BUILT_APART == set(), "imported and not declared"
    assert required - imported - USED_BY_OTHERS == set(), "declared and never imported"


def test_architecture_page_accounts_for_every_dependency() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in project()["project"]["dependencies"]]
    assert [name for name in names if not re.search(rf"`{re.escape(name)}`", page)] == []


def test_the_package_is_also_a_command_and_has_a_version() -> None:
    code = "import motet; print(motet.__version__)"
    plain = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    command = [sys.executable, "-m", "motet", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"motet {plain}\n"
