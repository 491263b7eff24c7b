"""`hermes`: calls as JSON between <tool_call> tags, as Hermes and Qwen models write them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from motet.core.hookspecs import Register, hookimpl
from motet.core.output_format import GrammarSpec
from motet.core.tool_parser import CallPiece, Tool, ToolParser, ToolReader
from motet.plugins.tool_parsers.tool_json import MAX_SPACE, JsonCall, call_object, call_rules, calls, described

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_SURPLUS = "} \n"
"""What may come between a call and its closing tag: some write a brace too many."""


class HermesReader(ToolReader):
    """Text, a tag, an object, a tag, and so on. White space beside the tags belongs to neither text nor call."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        self._tools = tools
        self._held = ""
        self._call: JsonCall | None = None
        self._closing = False
        self._after = False  # a call has ended, and nothing but white space has come since
        self._calls = 0

    def push(self, text: str) -> list[str | CallPiece]:
        """See ToolReader."""
        self._held += text
        found: list[str | CallPiece] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[str | CallPiece]:
        """See ToolReader. Tags that were cut belong to the calls before them."""
        if self._call is not None:
            return [] if self._call.started or (self._calls and not self._call.raw.strip()) else [OPEN + self._call.raw]
        text, self._held = self._held, ""
        if self._closing:
            return [] if CLOSE.startswith(text.lstrip(_SURPLUS)) else [text]
        return [text] if text and not (self._calls and OPEN.startswith(text.strip())) else []

    def _step(self, found: list[str | CallPiece]) -> bool:
        """Take what can be taken of what is held; whether there may be more."""
        if self._call is not None:
            return self._read_call(self._call, found)
        if self._closing:
            return self._read_close()
        if self._after:
            self._held = self._held.lstrip()
            self._after = not self._held
        before, tag, after = self._held.partition(OPEN)
        if tag:
            shown = _without_space(before)
            self._held, self._call = after, JsonCall(self._calls, self._tools)
        else:  # a tag may have begun, and white space may be followed by one
            shown = _without_space(self._held[: len(self._held) - _partial(self._held, OPEN)])
            self._held = self._held[len(shown) :]
        if shown:
            found.append(shown)
        return bool(tag)

    def _read_call(self, call: JsonCall, found: list[str | CallPiece]) -> bool:
        text, self._held = self._held, ""
        found += call.push(text) if text else []
        if call.failed:
            # What follows a tag that no object follows may be another tag.
            found.append(OPEN + call.raw if call.begun else OPEN)
            self._call, self._held = None, (call.rest or "") if call.begun else call.raw
            return bool(self._held)
        if call.rest is not None:
            self._calls += 1
            self._call, self._held, self._closing = None, call.rest, True
            return True
        return False

    def _read_close(self) -> bool:
        tag = self._held.lstrip(_SURPLUS)
        near = len(self._held) - len(tag) <= MAX_SPACE
        if near and CLOSE.startswith(tag) and tag != CLOSE:
            return False
        if near and tag.startswith(CLOSE):
            self._held = tag[len(CLOSE) :]
        self._closing, self._after = False, True  # or it was left out
        return bool(self._held)


def _without_space(text: str) -> str:
    """`text` without the white space at its end, as far as that is waited through for a tag."""
    kept = text.rstrip()
    return text[: max(len(kept), len(text) - MAX_SPACE)]


def _partial(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
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
            f"<tools>\n{described(tools)}\n</tools>\n"
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
