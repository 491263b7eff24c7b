"""`llama3_json`: the answer is one JSON object, or several separated by ";", as Llama 3 models write calls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from motet.core.hookspecs import Register, hookimpl
from motet.core.output_format import GrammarSpec
from motet.core.tool_parser import CallPiece, Tool, ToolParser, ToolReader
from motet.plugins.tool_parsers.tool_json import MAX_SPACE, JsonCall, call_object, call_rules, calls, describe_tools

TAG = "<|python_tag|>"
SPACE = " \t\r\n"
"""Characters allowed before the first call; the grammar in text_or_calls must match."""

BETWEEN = SPACE + ";"

SEPARATOR = '"; "'
"""A Lark string: what the grammar puts between two calls."""


class Llama3Reader(ToolReader):
    """Reads objects at the start of an answer as calls; everything after them is text."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools
        self._buffer = ""
        self._call: JsonCall | None = None
        self._calls = 0
        self._is_text = False  # everything that follows is text

    def push(self, text: str) -> list[str | CallPiece]:
        """See ToolReader."""
        self._buffer += text
        output: list[str | CallPiece] = []
        while self._step(output):
            pass
        return output

    def finish(self) -> list[str | CallPiece]:
        """See ToolReader."""
        text, self._buffer = self._buffer, ""
        if self._call is not None and not self._call.started:
            text = self._call.raw + text
        return [text] if text.strip(BETWEEN) or (text and not self._calls) else []

    def _step(self, output: list[str | CallPiece]) -> bool:
        if self._is_text:
            text, self._buffer = self._buffer, ""
            output += [text] if text else []
            return False
        if self._call is not None:
            return self._read_call(self._call, output)
        ahead = self._buffer.lstrip(BETWEEN if self._calls else SPACE)
        near = len(self._buffer) - len(ahead) <= MAX_SPACE
        if near and TAG.startswith(ahead) and ahead != TAG:
            return False
        if near and ahead.startswith(TAG):
            self._buffer = ahead[len(TAG) :]
            return True
        if near and ahead.startswith("{"):
            self._buffer, self._call = ahead, JsonCall(self._calls, self._tools)
            return True
        self._is_text = True
        return True

    def _read_call(self, call: JsonCall, output: list[str | CallPiece]) -> bool:
        text, self._buffer = self._buffer, ""
        output += call.push(text) if text else []
        if call.failed:
            output.append(call.raw)
            self._call, self._buffer, self._is_text = None, call.rest or "", True
            return bool(self._buffer)
        if call.rest is not None:
            self._calls += 1
            self._call, self._buffer = None, call.rest
            return bool(self._buffer)
        return False


class Llama3Json(ToolParser):
    """{"name": …, "parameters": {…}}, optionally after <|python_tag|>"""

    markers = (TAG,)

    def claims(self, template: str) -> bool:
        """See ToolParser."""
        return TAG in template or ('"parameters"' in template and "ipython" in template)

    def instructions(self, tools: Sequence[Tool]) -> str:
        """See ToolParser."""
        return (
            f"You have these functions:\n{describe_tools(tools)}\n"
            "To call one, answer with nothing but a JSON object with its name and its parameters, exactly like this: "
            '{"name": <function name>, "parameters": <parameters as a JSON object>}'
        )

    def call_text(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See ToolParser."""
        return call_object(name, "parameters", arguments)

    def result_text(self, content: str) -> str:
        """See ToolParser."""
        return f"The function's result: {content}"

    def grammar(self, tools: Sequence[Tool], several: bool, special: Collection[str]) -> GrammarSpec:
        """See ToolParser."""
        start = calls(tools, "object", "raw_object", SEPARATOR, several)
        return GrammarSpec("lark", f"start: {start}\n{call_rules(tools, 'parameters')}")

    def text_or_calls(self, tools: Sequence[Tool], special: Collection[str]) -> GrammarSpec:
        """See ToolParser."""
        tag = f"{TAG}? " if TAG in special else ""
        start = f"start: {tag}({calls(tools, 'object', 'raw_object', SEPARATOR, True)}) | TEXT"
        # As in the reader, text starts with neither a brace nor the tag.
        text = r"TEXT: /[ \t\r\n]*(<?|([^{< \t\r\n]|<[^|])(.|\n)*)/"
        return GrammarSpec("lark", f"{start}\n{text}\n{call_rules(tools, 'parameters')}")

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See ToolParser."""
        return Llama3Reader(tools)


@hookimpl
def register_tool_parsers(register: Register[ToolParser]) -> None:
    """Add `llama3_json`."""
    register("llama3_json", Llama3Json())
