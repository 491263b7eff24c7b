"""Custom tools, whose input is text: how the model is offered one, and how its input is read from a call."""

from __future__ import annotations

import json
from typing import Any, Literal

import regex

from motet.core.output_formats import GrammarSpec
from motet.core.tools import Tool

Syntax = Literal["lark", "regex"]

INPUT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}
MAX_OPENING = 256

_OPENING = regex.compile(r'\s*\{\s*"input"\s*:\s*"')
_HIGH = "[dD][89abAB][0-9a-fA-F]{2}"
# Whole characters of a JSON string; a surrogate waits for the other half of its pair.
_CHARACTERS = regex.compile(
    rf'(?:[^"\\]|\\[^u]|\\u(?!{_HIGH})[0-9a-fA-F]{{4}}|\\u{_HIGH}(?:\\u[0-9a-fA-F]{{4}}|(?=[^\\]|\\[^u])))*+',
    regex.DOTALL,
)


def custom_tool(name: str, description: str | None, syntax: Syntax | None, definition: str) -> Tool:
    """A custom tool as the model is offered it: a function with one parameter, or with an input of that grammar."""
    if syntax is None:
        return Tool(name, description, INPUT_SCHEMA)
    told = f"{description or ''}\n\nThe input follows this {syntax} grammar:\n{definition}".strip()
    return Tool(name, told, INPUT_SCHEMA, strict=True, raw_input=GrammarSpec(syntax, definition))


class InputReader:
    """Reads the input of one call from its arguments as they come; `raw`: they are the input itself."""

    def __init__(self, raw: bool) -> None:
        self._raw, self._held = raw, ""
        self._is_open = self._is_closed = False

    def push(self, arguments: str) -> str:
        """What the next piece of the arguments adds to the input."""
        if self._raw or self._is_closed:
            return arguments if self._raw else ""
        if not self._is_open:
            known = len(self._held)
            self._held += arguments
            opening = _OPENING.match(self._held) if known <= MAX_OPENING else None
            if opening is None:
                return ""
            self._is_open, arguments, self._held = True, self._held[opening.end() :], ""
        return self._characters(self._held + arguments)

    def finish(self) -> str:
        """What is left at the call's end: everything, if the arguments did not begin with the input."""
        if self._raw or self._is_open:
            return ""
        try:
            arguments = json.loads(self._held)
        except (ValueError, RecursionError):
            return ""
        given = arguments.get("input") if isinstance(arguments, dict) else None
        return _sendable(given) if isinstance(given, str) else self._held

    def _characters(self, text: str) -> str:
        found = _CHARACTERS.match(text)
        end = found.end() if found else 0
        self._held = text[end:]
        self._is_closed = self._held.startswith('"')
        try:
            return _sendable(json.loads(f'"{text[:end]}"', strict=False))
        except ValueError:
            return text[:end]


def _sendable(text: str) -> str:
    """The text without halves of surrogate pairs, which no encoding has."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
