"""The tools of a chat request: functions, and custom tools with their grammars."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from motet.api.schema.request_fields import described

MAX_TOOLS = 128
MAX_TOOL_GRAMMAR_CHARACTERS = 64 * 1024
"""Characters of a custom tool's grammar."""


class FunctionDefinition(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$", examples=["get_weather"])]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, described("A JSON schema of the arguments, an object.")] = None
    strict: Annotated[bool | None, described("Enforce the schema whenever the function is called.")] = None


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function as a tool."""

    function: FunctionDefinition


class Grammar(msgspec.Struct, frozen=True):
    """A grammar of a custom tool's input."""

    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Meta(min_length=1, max_length=MAX_TOOL_GRAMMAR_CHARACTERS)]


class TextInput(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Any text as input."""


class GrammarInput(msgspec.Struct, frozen=True, tag_field="type", tag="grammar"):
    """Input that must match a grammar."""

    grammar: Grammar


class CustomDefinition(msgspec.Struct, frozen=True):
    """A tool whose input is text."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$", examples=["run_sql"])]
    description: str | None = None
    format: Annotated[TextInput | GrammarInput | None, described("The format of the input; if absent, any text.")] = (
        None
    )


class CustomTool(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    """A custom tool."""

    custom: CustomDefinition
