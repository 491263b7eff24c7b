"""The size and documentation rules, held for every Python file of the repository."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 5

# A compiled kernel takes its arrays one by one: the compiler knows no records.
KERNELS = ("engine/kernels/",)

Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = Function | ast.ClassDef


def sources(*folders: str) -> Iterator[tuple[str, str]]:
    """(path below the root, text) of every Python file in `folders`."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text()


def every_source() -> Iterator[tuple[str, str]]:
    """All Python files that this repository keeps."""
    yield from sources("core", "plugins", "engine", "api", "tests")


def functions(text: str) -> Iterator[Function]:
    """Every function of a file, nested ones and methods too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function):
            yield node


def parameters(function: Function) -> list[str]:
    """A function's parameters without self and cls."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def public(tree: ast.Module) -> Iterator[tuple[str, Documented]]:
    """Public functions and classes of a module, and the public methods of its public classes."""
    for node in tree.body:
        if not isinstance(node, Documented) or node.name.startswith("_"):
            continue
        yield node.name, node
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(member, Function) and not member.name.startswith("_"):
                yield f"{node.name}.{member.name}", member


def test_files_are_short() -> None:
    lengths = {path: text.count("\n") for path, text in every_source()}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE} == {}


def test_functions_are_short() -> None:
    long = []
    for path, text in every_source():
        for function in functions(text):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > MAX_FUNCTION:
                long.append(f"{path}: {function.name} has {length} lines")
    assert long == []


def test_functions_take_few_parameters() -> None:
    wide = []
    for path, text in every_source():
        for function in functions(text):
            count = len(parameters(function))
            table = path.startswith("tests/") and function.name.startswith("test_")  # a table's columns, to pytest
            if count > MAX_PARAMETERS and not path.startswith(KERNELS) and not table:
                wide.append(f"{path}: {function.name} takes {count}")
    assert wide == []


def test_public_names_are_documented() -> None:
    silent = []
    for path, text in sources("core", "plugins", "engine", "api"):
        tree = ast.parse(text)
        if text and not ast.get_docstring(tree):
            silent.append(path)
        silent += [f"{path}: {name}" for name, node in public(tree) if not ast.get_docstring(node)]
    assert silent == []


def test_test_modules_say_what_they_hold() -> None:
    assert [path for path, text in sources("tests") if text and not ast.get_docstring(ast.parse(text))] == []
