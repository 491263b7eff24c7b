"""The part of a JSON schema that is at fault, as the process that compiles grammars finds it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from motet.core.output_format import GrammarSpec
from motet.engine.client.grammar_worker import located_error

OVERLAP = {"oneOf": [{"type": "object", "properties": {name: {"type": "string"}}} for name in "ab"]}
STRING = {"type": "string"}
UNCLOSED = {"type": "string", "pattern": "(a"}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"properties": {"y": STRING, "x": OVERLAP}}, "properties.x.oneOf"),
        ({"type": "objekt"}, "type"),
        ({"properties": {"x": {"items": {"type": "string", "format": "foo"}}}}, "properties.x.items.format"),
        (
            {"properties": {"x": {"anyOf": [STRING, {"type": "string", "pattern": "(a"}]}}},
            "properties.x.anyOf[1].pattern",
        ),
        ({"properties": {"x": {"$ref": "http://x/y"}}}, "properties.x.$ref"),
        ({"properties": {"x": {"$ref": "#/$defs/A"}}, "$defs": {"B": STRING, "A": OVERLAP}}, "$defs.A.oneOf"),
        ({"properties": {"x": {"not": STRING}}}, "properties.x"),
    ],
)
def test_the_part_at_fault_is_named(schema: dict[str, Any], path: str) -> None:
    spec = GrammarSpec("json_schema", json.dumps({"type": "object", **schema}))
    found, _, message = located_error(spec).partition("\0")
    assert found == path
    assert message


def test_a_schema_that_compiles_has_no_fault_and_a_cycle_ends() -> None:
    assert located_error(GrammarSpec("json_schema", json.dumps({"type": "object", "properties": {"x": STRING}}))) == ""
    loop = {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"x": {"$ref": "#/$defs/A"}, "y": OVERLAP}}}}
    assert located_error(GrammarSpec("json_schema", json.dumps(loop))).startswith("$defs.A.properties.y.oneOf\0")
