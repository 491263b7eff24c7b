"""`text` and `json_object`."""

import json

import llguidance
import pytest

from motet.core.errors import InvalidRequest
from motet.core.output_format import OutputFormat
from motet.core.plugin_registry import PluginRegistry


def output_format(name: str) -> OutputFormat:
    return PluginRegistry.load(["motet.plugins.output_formats"], installed=False).output_formats.items[name]


def test_text_is_free() -> None:
    assert output_format("text").grammar({"type": "text"}) is None


@pytest.mark.parametrize(
    "schema", [None, {}, {"type": "object", "properties": {"name": {"type": "string", "pattern": "^é+$"}}}]
)
def test_json_object_is_a_schema_that_compiles(schema: dict[str, object] | None) -> None:
    given = {"type": "json_object"} | ({} if schema is None else {"schema": schema})
    spec = output_format("json_object").grammar(given)
    assert spec is not None
    assert spec.kind == "json_schema"
    assert {**json.loads(spec.text), "x-guidance": 0} == ({"type": "object"} if schema is None else schema) | {
        "x-guidance": 0
    }
    grammar = llguidance.LLMatcher.grammar_from_json_schema(spec.text)
    assert llguidance.LLMatcher.validate_grammar(grammar) == ""


@pytest.mark.parametrize("schema", ["{}", [1], True, {"enum": ["x" * 70_000]}])
def test_a_schema_that_is_none_or_too_large_is_refused(schema: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        output_format("json_object").grammar({"type": "json_object", "schema": schema})
    assert caught.value.param == "response_format.schema"


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    schema: dict[str, object] = {}
    for _ in range(100_000):
        schema = {"not": schema}
    with pytest.raises(InvalidRequest, match="too deeply") as caught:
        output_format("json_object").grammar({"type": "json_object", "schema": schema})
    assert caught.value.param == "response_format.schema"
