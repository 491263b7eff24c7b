"""Error codes are declared in core/error_codes.py, each with its meaning, and never written as strings elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec

from motet.core import error_codes
from motet.core.errors import ErrorInfo

ROOT = Path(error_codes.__file__).resolve().parent.parent
FOLDERS = ("core", "engine", "api", "plugins")
CODES = {name: value for name, value in vars(error_codes).items() if name.isupper()}

# Positions of `code` in calls that pass it without a keyword.
POSITIONS = {"ErrorInfo": 2, "ResponseError": 0}


def name_of(node: ast.expr) -> str:
    """The last part of a (dotted) name."""
    return getattr(node, "attr", getattr(node, "id", ""))


def is_named_code(node: ast.expr) -> bool:
    """Whether this is a variable or an attribute `code`."""
    return name_of(node) == "code"


def code_values(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions that `node` uses as an error code: assigned, passed or compared."""
    match node:
        case ast.keyword(arg="code"):
            yield node.value
        case ast.Assign() if any(is_named_code(target) for target in node.targets):
            yield node.value
        case ast.Compare() if is_named_code(node.left):
            yield from node.comparators
        case ast.Match() if is_named_code(node.subject):
            yield from (p.value for case in node.cases for p in ast.walk(case) if isinstance(p, ast.MatchValue))
        case ast.Dict():
            yield from (
                v
                for k, v in zip(node.keys, node.values, strict=True)
                if isinstance(k, ast.Constant)
                if k.value == "code"
            )
        case ast.Call() if name_of(node.func) in POSITIONS:
            position = POSITIONS[name_of(node.func)]
            yield from node.args[position : position + 1]


def strings(value: ast.expr) -> Iterator[str]:
    """The string literals that an expression can evaluate to."""
    match value:
        case ast.Constant(value=str() as text):
            yield text
        case ast.IfExp():
            yield from (*strings(value.body), *strings(value.orelse))
        case ast.BoolOp():
            for part in value.values:
                yield from strings(part)
        case ast.Tuple() | ast.Set() | ast.List():
            for part in value.elts:
                yield from strings(part)


def test_no_code_is_a_string_literal() -> None:
    literals = []
    for path in sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if p.name != "error_codes.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for text in (text for value in code_values(node) for text in strings(value)):
                literals.append(f"{path.relative_to(ROOT)}: {text!r}")
    assert literals == [], "declare the code in core/error_codes.py and use its name"


def test_the_check_finds_literals() -> None:
    source = """
f(code="a")
code = "b" if x else None
if error.code == "c": pass
match info.code:
    case "d": pass
{"code": "e"}
ErrorInfo("message", "type", "f", 400)
"""
    found = [text for node in ast.walk(ast.parse(source)) for value in code_values(node) for text in strings(value)]
    assert sorted(found) == ["a", "b", "c", "d", "e", "f"]


def test_a_name_is_its_value_in_capitals() -> None:
    assert {name: value.upper() for name, value in CODES.items()} == {name: name for name in CODES}


def test_every_code_has_a_meaning() -> None:
    body = ast.parse(Path(error_codes.__file__).read_text()).body
    followers = {
        s.target.id: body[i + 1]
        for i, s in enumerate(body)
        if isinstance(s, ast.AnnAssign)
        if isinstance(s.target, ast.Name)
    }
    assert set(followers) == set(CODES)
    bare = [
        name
        for name, node in followers.items()
        if not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and str(node.value.value).endswith(".")
        )
    ]
    assert bare == []


def test_every_code_is_used() -> None:
    used = {
        node.attr
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and name_of(node.value) == "error_codes"
    }
    assert used == set(CODES)


def test_a_code_is_a_plain_string_on_the_wire() -> None:
    info = ErrorInfo("message", "type", error_codes.NOT_FOUND, 404)
    assert (
        msgspec.json.encode(info) == b'{"message":"message","type":"type","code":"not_found","status":404,"param":null}'
    )
