"""Offers custom tools, whose input is plain text, to the model, and reads their input from calls."""

from __future__ import annotations

import json
from typing import Any, Literal

import regex

from motet.core.output_format import GrammarSpec
from motet.core.tool_parser import Tool

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
# Complete characters of a JSON string; the first half of a surrogate pair waits for the second.
_CHARACTERS = regex.compile(
    rf'(?:[^"\\]|\\[^u]|\\u(?!{_HIGH})[0-9a-fA-F]{{4}}|\\u{_HIGH}(?:\\u[0-9a-fA-F]{{4}}|(?=[^\\]|\\[^u])))*+',
    regex.DOTALL,
)


def custom_tool(name: str, description: str | None, syntax: Syntax | None, definition: str) -> Tool:
    """A custom tool as a function with one parameter, or with an input of that grammar."""
    if syntax is None:
        return Tool(name, description, INPUT_SCHEMA)
    text = f"{description or ''}\n\nThe input follows this {syntax} grammar:\n{definition}".strip()
    return Tool(name, text, INPUT_SCHEMA, strict=True, raw_input=GrammarSpec(syntax, definition))


class InputReader:
    """Reads the input of one call from its arguments as they arrive; `raw`: they are the input itself."""

    def __init__(self, raw: bool) -> None:
        self._raw, self._unread = raw, ""
        self._is_open = self._is_closed = False

    def push(self, arguments: str) -> str:
        """The text that the next piece of the arguments adds to the input."""
        if self._raw or self._is_closed:
            return arguments if self._raw else ""
        if not self._is_open:
            length = len(self._unread)
            self._unread += arguments
            opening = _OPENING.match(self._unread) if length <= MAX_OPENING else None
            if opening is None:
                return ""
            self._is_open, arguments, self._unread = True, self._unread[opening.end() :], ""
        return self._characters(self._unread + arguments)

    def finish(self) -> str:
        """The rest at the call's end: everything, if the arguments did not begin with the input."""
        if self._raw or self._is_open:
            return ""
        try:
            arguments = json.loads(self._unread)
        except (ValueError, RecursionError):
            return ""
        text = arguments.get("input") if isinstance(arguments, dict) else None
        return _sendable(text) if isinstance(text, str) else self._unread

    def _characters(self, text: str) -> str:
        match = _CHARACTERS.match(text)
        end = match.end() if match else 0
        self._unread = text[end:]
        self._is_closed = self._unread.startswith('"')
        try:
            return _sendable(json.loads(f'"{text[:end]}"', strict=False))
        except ValueError:
            return text[:end]


def _sendable(text: str) -> str:
    """The text without halves of surrogate pairs, which cannot be encoded."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
