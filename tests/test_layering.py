"""Which folder may import which, by the table in docs/architecture.md; and where torch must not be imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs.pages import section, table

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("core", "plugins", "engine", "api")
# The package `motet` itself (pyproject.toml maps it).
PACKAGE_ROOT = "api/motet/__init__.py"
HEAVY = ("torch", "transformers", "safetensors", "flash_attn", "triton")

# These wire the layers together: the processes, the command line, and the package's public names.
ENTRY_POINTS = {"api/server/supervisor.py", "api/server/api_processes.py", "api/motet/__main__.py", "api/server/cli.py"}
ENTRY_POINTS |= {PACKAGE_ROOT}

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
    "schedule.adapter_eviction",
    "schedule.adapter_slots",
    "schedule.admission",
    "schedule.batch",
    "schedule.kv_block_manager",
    "schedule.plan",
    "schedule.preemption",
    "schedule.priority",
    "schedule.scheduler",
    "schedule.sequence",
    "schedule.waiting_queue",
    "auto_shards",
    "distributed.shard_counts",
    "engine_config",
    "largest_steps",
    "processes.child_process",
    "processes.engine_processes",
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


def sources(root: Path) -> list[Path]:
    """The Python files of the four folders, without the empty ones that only mark a package."""
    files = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return sorted(path for path in files if path.read_text())


def module_name(path: str) -> str:
    """The name under which a file is imported."""
    if path == PACKAGE_ROOT:
        return "motet"
    return ".".join(("motet", *Path(path).with_suffix("").parts)).removesuffix(".__init__")


def room_of(path: str) -> str:
    """The row of the layering table that a file belongs to: its folder, or itself where it lies in engine/ or api/."""
    parent = Path(path).parent.as_posix()
    return path if parent in ("engine", "api") else f"{parent}/"


def arrows(root: Path) -> dict[tuple[str, str], list[str]]:
    """(importing room, imported room) to the imports between their files."""
    names = [path.relative_to(root).as_posix() for path in sources(root)]
    files = {module_name(name): name for name in names}
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for module in imports(root / name):
            while module and module not in files:
                module = module.rpartition(".")[0]
            if module and room_of(files[module]) != room_of(name):
                pair = (room_of(name), room_of(files[module]))
                found.setdefault(pair, []).append(f"{name} imports {files[module]}")
    return found


def layering_table() -> list[str]:
    """The rooms of the table in docs/architecture.md, lowest first."""
    return [row[0].strip("`") for row in table(section("docs/architecture.md", "Folders"))]


def test_the_layering_table_has_every_room_once() -> None:
    rooms = {room_of(path.relative_to(ROOT).as_posix()) for path in sources(ROOT)}
    assert sorted(layering_table()) == sorted(rooms)


def test_rooms_import_only_rooms_of_earlier_rows() -> None:
    """The table is one order, lowest layer first; so there is no circle either."""
    rows = {room: number for number, room in enumerate(layering_table())}
    wrong = {
        f"{importer} -> {imported}": files
        for (importer, imported), files in arrows(ROOT).items()
        if rows[imported] > rows[importer]
    }
    assert wrong == {}


def test_arrows_include_imports_within_functions_and_of_the_package_root(tmp_path: Path) -> None:
    for name, text in {
        PACKAGE_ROOT: "NAME = 1",
        "core/errors.py": "def late():\n    from motet import NAME",
        "core/paths.py": "from motet.core import errors",
        "engine/worker.py": "import motet.core.errors",
        "api/http/auth.py": "from motet.core.errors import late",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert arrows(tmp_path) == {
        ("core/", "api/motet/"): [f"core/errors.py imports {PACKAGE_ROOT}"],
        ("engine/worker.py", "core/"): ["engine/worker.py imports core/errors.py"],
        ("api/http/", "core/"): ["api/http/auth.py imports core/errors.py"],
    }


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
