"""`hermes`: calls as JSON between <tool_call> tags, as Hermes and Qwen models write them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from motet.core.hookspecs import Register, hookimpl
from motet.core.output_format import GrammarSpec
from motet.core.tool_parser import CallPiece, Tool, ToolParser, ToolReader
from motet.plugins.tool_parsers.tool_json import MAX_SPACE, JsonCall, call_object, call_rules, calls, describe_tools

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_EXTRA = "} \n"
"""Characters allowed between a call and its closing tag: some models write an extra brace."""


class HermesReader(ToolReader):
    """Reads text, opening tag, object, closing tag, and so on. Drops white space next to the tags."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools
        self._buffer = ""
        self._call: JsonCall | None = None
        self._closing = False
        self._after_call = False  # only white space has followed the last call so far
        self._calls = 0

    def push(self, text: str) -> list[str | CallPiece]:
        """See ToolReader."""
        self._buffer += text
        output: list[str | CallPiece] = []
        while self._step(output):
            pass
        return output

    def finish(self) -> list[str | CallPiece]:
        """See ToolReader. Drops a truncated tag after a call."""
        if self._call is not None:
            return [] if self._call.started or (self._calls and not self._call.raw.strip()) else [OPEN + self._call.raw]
        text, self._buffer = self._buffer, ""
        if self._closing:
            return [] if CLOSE.startswith(text.lstrip(_EXTRA)) else [text]
        return [text] if text and not (self._calls and OPEN.startswith(text.strip())) else []

    def _step(self, output: list[str | CallPiece]) -> bool:
        """Read from the buffer into `output`; return whether the rest of the buffer can be read now."""
        if self._call is not None:
            return self._read_call(self._call, output)
        if self._closing:
            return self._read_close()
        if self._after_call:
            self._buffer = self._buffer.lstrip()
            self._after_call = not self._buffer
        before, tag, after = self._buffer.partition(OPEN)
        if tag:
            complete = _without_space(before)
            self._buffer, self._call = after, JsonCall(self._calls, self._tools)
        else:  # hold back the start of a tag, and white space before a possible tag
            complete = _without_space(self._buffer[: len(self._buffer) - _partial(self._buffer, OPEN)])
            self._buffer = self._buffer[len(complete) :]
        if complete:
            output.append(complete)
        return bool(tag)

    def _read_call(self, call: JsonCall, output: list[str | CallPiece]) -> bool:
        text, self._buffer = self._buffer, ""
        output += call.push(text) if text else []
        if call.failed:
            # Without an object after the tag, the rest may contain another tag.
            output.append(OPEN + call.raw if call.has_brace else OPEN)
            self._call, self._buffer = None, (call.rest or "") if call.has_brace else call.raw
            return bool(self._buffer)
        if call.rest is not None:
            self._calls += 1
            self._call, self._buffer, self._closing = None, call.rest, True
            return True
        return False

    def _read_close(self) -> bool:
        tag = self._buffer.lstrip(_EXTRA)
        near = len(self._buffer) - len(tag) <= MAX_SPACE
        if near and CLOSE.startswith(tag) and tag != CLOSE:
            return False
        if near and tag.startswith(CLOSE):
            self._buffer = tag[len(CLOSE) :]
        self._closing, self._after_call = False, True  # the closing tag was read, or is missing
        return bool(self._buffer)


def _without_space(text: str) -> str:
    """`text` without up to MAX_SPACE characters of white space at its end."""
    stripped = text.rstrip()
    return text[: max(len(stripped), len(text) - MAX_SPACE)]


def _partial(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the start of `tag`."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


class Hermes(ToolParser):
    """<tool_call>{"name": …, "arguments": {…}}</tool_call>"""

    markers = (OPEN, CLOSE)

    def claims(self, template: str) -> bool:
        """See ToolParser."""
        return OPEN in template

    def instructions(self, tools: Sequence[Tool]) -> str:
        """See ToolParser."""
        form = f'{OPEN}\n{{"name": <function name>, "arguments": <arguments as a JSON object>}}\n{CLOSE}'
        return (
            "You may call functions to help with the user's query. You have these functions:\n"
            f"<tools>\n{describe_tools(tools)}\n</tools>\n"
            f"To call one, answer with its name and arguments, exactly like this:\n{form}"
        )

    def call_text(self, name: str, arguments: Mapping[str, Any]) -> str:
        """See ToolParser."""
        return f"{OPEN}\n{call_object(name, 'arguments', arguments)}\n{CLOSE}"

    def result_text(self, content: str) -> str:
        """See ToolParser."""
        return f"<tool_response>\n{content}\n</tool_response>"

    def grammar(self, tools: Sequence[Tool], several: bool, special: Collection[str]) -> GrammarSpec:
        """See ToolParser."""
        return GrammarSpec(
            "lark", f"start: {calls(tools, 'call', 'raw_call', 'BREAK', several)}\n{_rules(tools, special)}"
        )

    def text_or_calls(self, tools: Sequence[Tool], special: Collection[str]) -> GrammarSpec:
        """See ToolParser."""
        is_raw, is_plain = (any((tool.raw_input is None) is plain for tool in tools) for plain in (False, True))
        if OPEN in special:
            start = f"start: TEXT{' (call TEXT)*' if is_plain else ''}{' raw_call?' if is_raw else ''}"
        else:
            ends = "(TEXT | lead BREAK raw_object)" if is_raw else "TEXT"
            start = f"start: {'(lead rest)* ' if is_plain else ''}{ends}\nlead[lazy]: /(.|\\n)*{OPEN}/"
        return GrammarSpec("lark", f"{start}\nTEXT: /(.|\\n)*/\n{_rules(tools, special)}")

    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """See ToolParser."""
        return HermesReader(tools)


def _rules(tools: Sequence[Tool], special: Collection[str]) -> str:
    opening, closing = (tag if tag in special else json.dumps(tag) for tag in (OPEN, CLOSE))
    rules = [r'BREAK: "\n"', call_rules(tools, "arguments")]
    if any(tool.raw_input is None for tool in tools):
        rules += [f"call: {opening} rest", f"rest: BREAK object BREAK {closing}"]
    if any(tool.raw_input is not None for tool in tools):
        rules.append(f"raw_call: {opening} BREAK raw_object")
    return "\n".join(rules)


@hookimpl
def register_tool_parsers(register: Register[ToolParser]) -> None:
    """Add `hermes`."""
    register("hermes", Hermes())
