"""Who may import whom, read from the source; and that no torch comes in by a side door."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "safetensors", "flash_attn", "triton")

# The processes and the command line wire the layers together.
ENTRY_POINTS = {"api/server/supervisor.py", "api/server/processes.py", "api/motet/__main__.py", "api/server/cli.py"}

# Folder (or file) -> what of Motet it may import, and what it may not import at all.
RULES = {
    "core": (("motet.core",), (*HEAVY, "quart", "hypercorn", "numba")),
    "plugins": (("motet.core", "motet.plugins"), (*HEAVY, "quart", "hypercorn", "numba")),
    "engine/client": (("motet.core", "motet.engine.client"), (*HEAVY, "quart", "hypercorn", "numba")),
    "engine": (("motet.core", "motet.engine"), ("quart", "hypercorn")),
    "api": (("motet.core", "motet.engine.client", "motet.api"), (*HEAVY, "numba")),
}

# The scheduling side of the engine, and the processes' modules, which start without torch.
TORCH_FREE_ENGINE = (
    "schedule.adapter_slots",
    "schedule.block_manager",
    "schedule.plan",
    "schedule.scheduler",
    "schedule.sequence",
    "schedule.step",
    "engine_config",
    "processes",
    "child_process",
    "distributed.transport",
    "worker",
)


def imports(path: Path) -> Iterator[str]:
    """Every module that `path` imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether `module` is one of `packages` or inside one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("folder", RULES)
def test_imports_respect_the_layers(folder: str) -> None:
    allowed, banned = RULES[folder]
    wrong = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for module in imports(path):
            if within(module, ("motet",)) and not within(module, allowed) and name not in ENTRY_POINTS:
                wrong.append(f"{name} imports {module}")
            if within(module, banned):
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def modules(folder: str) -> list[str]:
    """The importable modules of a folder. `__main__` runs when imported."""
    files = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / folder).rglob("*.py")))
    return [".".join(("motet", *file.parts)) for file in files if file.name not in ("__init__", "__main__")]


def heavy_after_importing(names: list[str], heavy: tuple[str, ...]) -> str:
    """Import `names` one by one in a fresh process; which of `heavy` the first offender brought in, or nothing."""
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [m for m in {heavy!r} if m in sys.modules]\n"
        "    if found:\n"
        "        sys.exit(f'{name} brings in {found}')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/")
    return done.stderr


@pytest.mark.parametrize("folder", ["core", "plugins", "engine/client", "api"])
def test_light_folders_load_no_torch(folder: str) -> None:
    assert heavy_after_importing(modules(folder), (*HEAVY, "numba")) == ""


def test_scheduling_side_loads_no_torch() -> None:
    names = [f"motet.engine.{name}" for name in TORCH_FREE_ENGINE]
    assert heavy_after_importing(names, ("torch", "transformers", "numba")) == ""


def test_supervisor_loads_no_web_framework() -> None:
    assert heavy_after_importing(["motet.api.server.supervisor"], (*HEAVY, "quart", "hypercorn")) == ""
