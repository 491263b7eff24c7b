"""The names that `motet` exports: they exist, load only what they need, and type checkers see them."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import motet

ROOT = Path(__file__).resolve().parent.parent
LIGHT = ("motet.core.", "motet.engine.llm")
PLUGIN = """from motet import AdapterSource, Engine, Enginee, Settings, hookimpl

reveal_type(Settings().port)
"""


def type_checking_imports() -> dict[str, tuple[str, ...]]:
    """Module to names, as the imports for type checkers have them."""
    tree = ast.parse((ROOT / "api" / "motet" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {
        node.module or "": tuple(a.name for a in node.names) for node in block.body if isinstance(node, ast.ImportFrom)
    }


def test_every_public_name_is_the_one_of_its_module() -> None:
    assert type_checking_imports() == motet._MODULES
    assert motet.__all__ == sorted(["__version__", *(name for names in motet._MODULES.values() for name in names)])
    for module, names in motet._MODULES.items():
        for name in names:
            assert getattr(motet, name) is getattr(sys.modules[module], name)
    assert set(motet.__all__) <= set(dir(motet))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'motet' has no attribute 'Enginee'"):
        _ = motet.Enginee  # type: ignore[attr-defined]


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh process has loaded after `statement`."""
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    return set(done.stdout.split())


def test_importing_motet_loads_nothing_of_it() -> None:
    loaded = loaded_after("import motet")
    assert [name for name in loaded if name.startswith("motet.")] == []


def test_public_names_load_no_torch_and_no_web_framework() -> None:
    assert all(module.startswith(LIGHT) for module in motet._MODULES)
    loaded = loaded_after("from motet import *")
    assert loaded & {"torch", "transformers", "safetensors", "numba", "quart", "hypercorn"} == set()


def test_the_types_in_public_signatures_are_public() -> None:
    bases = (motet.AdapterSource, motet.ModelSource, motet.ChatTemplateFinder, motet.OutputFormat, motet.ToolParser)
    found = set()
    for base in (*bases, motet.ToolReader, motet.Engine):
        for name, method in inspect.getmembers(base, inspect.isfunction):
            kinds = {} if name.startswith("_") else inspect.get_annotations(method, eval_str=True)
            found |= {word for kind in kinds.values() for word in re.findall(r"motet\.[\w.]+\.(\w+)", repr(kind))}
    assert {"AdapterRef", "ToolReader", "TokenEvent"} <= found <= set(motet.__all__)


def test_type_checkers_see_the_public_names(tmp_path: Path) -> None:
    """Through the links that `make install` makes."""
    recipe = re.search(r"^TYPES := (.*)\n\$\(TYPES\):\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    if not (ROOT / recipe[1]).exists():
        subprocess.run(["bash", "-ec", recipe[2].replace("\t@", "")], cwd=ROOT, check=True)
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert tools["pyright"]["extraPaths"] == [tools["mypy"]["mypy_path"]]
    plugin = tmp_path / "plugin.py"
    plugin.write_text(PLUGIN)
    command = [sys.executable, "-m", "mypy", str(plugin)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert [line.rpartition("plugin.py")[2] for line in done.stdout.splitlines()] == [
        ':1: error: Module "motet" has no attribute "Enginee"; maybe "Engine"?  [attr-defined]',
        ':3: note: Revealed type is "int"',
        "Found 1 error in 1 file (checked 1 source file)",
    ], done.stderr
