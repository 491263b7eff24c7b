"""`text` and `json_object`: the values of `response_format.type` that need no grammar of the caller's own."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from motet.core.errors import InvalidRequest
from motet.core.formats import GrammarSpec, OutputFormat
from motet.core.hookspecs import Register, hookimpl

MAX_SCHEMA_BYTES = 64 * 1024
ANY_OBJECT = {"type": "object"}


class Text(OutputFormat):
    """Free text."""

    def grammar(self, response_format: Mapping[str, object]) -> None:
        """No grammar."""


class JsonObject(OutputFormat):
    """A JSON object; of the shape that `response_format.schema` gives, if it is there (as LoRAX has it)."""

    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec:
        """The JSON schema as a grammar. Raises InvalidRequest if the schema is no object, or too large."""
        schema = response_format.get("schema")
        if schema is None:
            schema = ANY_OBJECT
        if not isinstance(schema, dict):
            raise InvalidRequest("the schema must be a JSON object", param="response_format.schema")
        try:
            text = msgspec.json.encode(schema)
        except RecursionError:
            raise InvalidRequest("the schema is nested too deeply", param="response_format.schema") from None
        if len(text) > MAX_SCHEMA_BYTES:
            raise InvalidRequest(
                f"the schema has {len(text)} bytes; {MAX_SCHEMA_BYTES} are allowed",
                param="response_format.schema",
            )
        return GrammarSpec("json_schema", text.decode())


@hookimpl
def register_output_formats(register: Register[OutputFormat]) -> None:
    """Add `text` and `json_object`."""
    register("text", Text())
    register("json_object", JsonObject())
