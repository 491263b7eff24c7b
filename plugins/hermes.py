"""`hermes`: calls as JSON between <tool_call> tags, as Hermes and Qwen models write them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from motet.core.formats import GrammarSpec
from motet.core.hookspecs import Register, hookimpl
from motet.core.tools import CallPiece, Tool, ToolParser, ToolReader
from motet.plugins.tool_json import MAX_SPACE, JsonCall, call_object, call_rules, described

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class HermesReader(ToolReader):
    """Text, a tag, an object, a tag, and so on. White space beside the tags belongs to neither text nor call."""

    def __init__(self) -> None:
        self._held = ""
        self._call: JsonCall | None = None
        self._closing = False
        self._calls = 0

    def push(self, text: str) -> list[str | CallPiece]:
        """See ToolReader."""
        self._held += text
        found: list[str | CallPiece] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[str | CallPiece]:
        """See ToolReader."""
        text, self._held = self._held, ""
        if self._call is not None and not self._call.started:
            text = OPEN + self._call.raw + text
        if (self._closing or self._calls) and not text.strip():
            return []
        return [text] if text else []

    def _step(self, found: list[str | CallPiece]) -> bool:
        """Take what can be taken of what is held; whether there may be more."""
        if self._call is not None:
            return self._read_call(self._call, found)
        if self._closing:
            return self._read_close()
        before, tag, after = self._held.partition(OPEN)
        if tag:
            self._tell(before.rstrip(), found)
            self._held, self._call = after, JsonCall(self._calls)
            return True
        # A tag may have begun, and white space may be followed by one.
        kept = _partial(self._held, OPEN)
        shown = self._held[: len(self._held) - kept]
        if len(shown) - len(kept_back := shown.rstrip()) <= MAX_SPACE:
            shown = kept_back
        self._held = self._held[len(shown) :]
        self._tell(shown, found)
        return False

    def _tell(self, text: str, found: list[str | CallPiece]) -> None:
        if text.strip() or (text and not self._calls):
            found.append(text)

    def _read_call(self, call: JsonCall, found: list[str | CallPiece]) -> bool:
        text, self._held = self._held, ""
        found += call.push(text) if text else []
        if call.failed:
            found.append(OPEN + call.raw)
            self._call, self._held = None, call.rest or ""
            return bool(self._held)
        if call.rest is not None:
            self._calls += 1
            self._call, self._held, self._closing = None, call.rest, True
            return True
        return False

    def _read_close(self) -> bool:
        text = self._held.lstrip()
        tag = text.lstrip("} \n")  # some write a brace too many
        if tag.startswith(CLOSE):
            self._held, self._closing = tag[len(CLOSE) :].lstrip(), False
            return bool(self._held)
        if CLOSE.startswith(tag) and len(self._held) <= MAX_SPACE:
            return False
        self._closing = False  # it was left out
        return True


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
        return GrammarSpec("lark", f"start: call{' (BREAK call)*' if several else ''}\n{_rules(tools, special)}")

    def text_or_calls(self, tools: Sequence[Tool], special: Collection[str]) -> GrammarSpec:
        """See ToolParser."""
        if OPEN in special:
            start = "start: TEXT (call TEXT)*"
        else:
            start = f"start: (lead rest)* TEXT\nlead[lazy]: /(.|\\n)*{OPEN}/"
        return GrammarSpec("lark", f"{start}\nTEXT: /(.|\\n)*/\n{_rules(tools, special)}")

    def reader(self) -> ToolReader:
        """See ToolParser."""
        return HermesReader()


def _rules(tools: Sequence[Tool], special: Collection[str]) -> str:
    opening, closing = (tag if tag in special else json.dumps(tag) for tag in (OPEN, CLOSE))
    return "\n".join(
        (
            f"call: {opening} rest",
            f"rest: BREAK object BREAK {closing}",
            r'BREAK: "\n"',
            call_rules(tools, "arguments"),
        )
    )


@hookimpl
def register_tool_parsers(register: Register[ToolParser]) -> None:
    """Add `hermes`."""
    register("hermes", Hermes())
