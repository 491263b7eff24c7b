"""The values of `response_format.type`: text, JSON, a JSON schema, a regex, a choice, or a Lark grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal

import msgspec

from motet.core.errors import InvalidRequest
from motet.core.hookspecs import Register, hookimpl
from motet.core.output_format import GrammarSpec, OutputFormat
from motet.plugins.tool_parsers.tool_json import grammar_schema

MAX_SCHEMA_BYTES = 64 * 1024
MAX_NAME = 64
MAX_OPTIONS = 1024
ANY_OBJECT = {"type": "object"}


class Text(OutputFormat):
    """Free text."""

    def grammar(self, response_format: Mapping[str, object]) -> None:
        """No grammar."""


class JsonObject(OutputFormat):
    """A JSON object; it matches the JSON schema `response_format.schema`, if present (a LoRAX field)."""

    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec:
        """The JSON schema as a grammar. Raises InvalidRequest if the schema is not an object, or is too large."""
        schema = response_format.get("schema")
        return json_grammar(ANY_OBJECT if schema is None else schema, "response_format.schema", strict=False)


class JsonSchema(OutputFormat):
    """JSON that matches `response_format.json_schema.schema`.

    Keywords that a grammar cannot express are refused if `strict` is true, and ignored otherwise.
    """

    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec:
        """The JSON schema as a grammar. Raises InvalidRequest naming the missing or invalid part."""
        where = "response_format.json_schema"
        json_schema = response_format.get("json_schema")
        if not isinstance(json_schema, dict):
            raise InvalidRequest(f"{where} must be an object with a schema", param=where)
        name = json_schema.get("name", "schema")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
            raise InvalidRequest(f"name must be a string of 1 to {MAX_NAME} characters", param=f"{where}.name")
        if not isinstance(json_schema.get("strict"), bool | None):
            raise InvalidRequest("strict must be true or false", param=f"{where}.strict")
        schema = json_schema.get("schema")
        return json_grammar(
            ANY_OBJECT if schema is None else schema, f"{where}.schema", bool(json_schema.get("strict"))
        )


class CustomGrammar(OutputFormat):
    """A grammar from the request: the string `response_format.<name>`."""

    def __init__(self, kind: Literal["regex", "lark"], name: str) -> None:
        self._kind, self._name = kind, name

    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec:
        """The string, unchanged. Raises InvalidRequest if it is not a string, empty, or too long."""
        text = response_format.get(self._name)
        where = f"response_format.{self._name}"
        if not isinstance(text, str) or not text:
            raise InvalidRequest(f"{where} must be a non-empty string", param=where)
        if len(text.encode(errors="replace")) > MAX_SCHEMA_BYTES:
            raise InvalidRequest(f"{where} is larger than {MAX_SCHEMA_BYTES} bytes", param=where)
        return GrammarSpec(self._kind, text)


class Choice(OutputFormat):
    """One of the strings in `response_format.choice`."""

    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec:
        """The choices as a grammar. Raises InvalidRequest if they are not a list of strings."""
        choices = response_format.get("choice")
        where = "response_format.choice"
        if not isinstance(choices, list) or not 0 < len(choices) <= MAX_OPTIONS:
            raise InvalidRequest(f"{where} must be a list of 1 to {MAX_OPTIONS} strings", param=where)
        for index, choice in enumerate(choices):
            if not isinstance(choice, str) or not choice:
                raise InvalidRequest("a choice must be a non-empty string", param=f"{where}[{index}]")
        return GrammarSpec("lark", "start: " + " | ".join(map(json.dumps, choices)))


def json_grammar(schema: object, where: str, strict: bool) -> GrammarSpec:
    """A JSON schema as a grammar. Raises InvalidRequest naming `where` if it is not an object, or is too large."""
    if not isinstance(schema, dict):
        raise InvalidRequest("the schema must be a JSON object", param=where)
    try:
        text = msgspec.json.encode(grammar_schema(schema, strict))
    except RecursionError:
        raise InvalidRequest("the schema is nested too deeply", param=where) from None
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidRequest(f"the schema has {len(text)} bytes; the maximum is {MAX_SCHEMA_BYTES}", param=where)
    return GrammarSpec("json_schema", text.decode())


@hookimpl
def register_output_formats(register: Register[OutputFormat]) -> None:
    """Add all formats."""
    register("text", Text())
    register("json_object", JsonObject())
    register("json_schema", JsonSchema())
    register("regex", CustomGrammar("regex", "regex"))
    register("grammar", CustomGrammar("lark", "grammar"))
    register("choice", Choice())
