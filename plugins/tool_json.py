"""What the tool parsers share whose calls are JSON objects: reading one as it comes, and a grammar for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import regex

from motet.core.tools import CallPiece, Tool

# Models were taught all sorts of layouts; without a bound a weak one would write spaces for ever.
WHITESPACE = {"whitespace_pattern": r"\n? {0,12}"}

_HEAD = regex.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ObjectEnd:
    """Finds the end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str) -> int | None:
        """How many characters of `text` belong to the object, once it is complete; None before."""
        for position, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return position + 1
        return None


class JsonCall:
    """One call, an object with `name` and `arguments` (or `parameters`), read as it comes.

    Arguments stream if the name comes first, as it does from every model; else the call comes out when it is whole.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.started = False
        self.raw = ""  # everything so far, in case it is no call
        self.rest: str | None = None  # what follows the object, once that is complete
        self.failed = False  # it is complete, or broken, and no call
        self._whole, self._arguments = ObjectEnd(), ObjectEnd()
        self._arguments_open = False
        self._tail_start: int | None = None

    @property
    def tail(self) -> str:
        """What has come after complete arguments, where only the object's own end should be; "" before that."""
        return "" if self._tail_start is None else self.raw[self._tail_start :]

    def push(self, text: str) -> list[CallPiece]:
        """The pieces that `text` adds. Look at `rest` and `failed` afterwards."""
        before, self.raw = len(self.raw), self.raw + text
        if self.raw.strip() and not self.raw.lstrip().startswith("{"):
            self.failed = True
            return []
        end = self._whole.push(text)
        if end is not None:
            self.rest = text[end:]
            self.raw = self.raw[: before + end]
        if self._arguments_open:
            return self._stream(text if end is None else text[:end], before)
        if not self.started and (head := _HEAD.match(self.raw)):
            self.started = self._arguments_open = True
            name = CallPiece(self.index, _decoded(head[1]))
            return [name, *self._stream(self.raw[head.end() :], head.end())]
        return [] if end is None or self.started else self._at_once()

    def _stream(self, text: str, start: int) -> list[CallPiece]:
        """Take a piece of the arguments, which begins at `start` of what there is."""
        end = self._arguments.push(text)
        self._arguments_open = end is None
        if end is not None:
            self._tail_start = start + end
        piece = text if end is None else text[:end]
        return [CallPiece(self.index, arguments=piece)] if piece else []

    def _at_once(self) -> list[CallPiece]:
        """The whole object as a call, in whatever order its fields came."""
        try:
            call = msgspec.json.decode(self.raw)
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):  # some write the arguments as JSON in a text, as the API shows them
                arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError, AttributeError):
            name = arguments = None
        if not isinstance(name, str) or not isinstance(arguments, dict):
            self.failed = True
            return []
        self.started = True
        return [CallPiece(self.index, name), CallPiece(self.index, arguments=json.dumps(arguments, ensure_ascii=False))]


def _decoded(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted[1:-1]


def arguments_schema(tool: Tool) -> str:
    """The tool's parameters as a JSON schema for a grammar."""
    schema = dict(tool.parameters) or {"type": "object", "properties": {}, "additionalProperties": False}
    return json.dumps({"type": "object", **schema, "x-guidance": WHITESPACE}, ensure_ascii=False)


def call_rules(tools: Sequence[Tool], key: str) -> str:
    """Lark rules for a JSON object that calls one of `tools`: `object`, and what it is made of."""
    rules = ["object: " + " | ".join(f"object{i}" for i in range(len(tools)))]
    for i, tool in enumerate(tools):
        name = json.dumps(tool.name)
        opening = json.dumps(f'{{"name": {name}, "{key}": ')
        rules += [f'object{i}: {opening} arguments{i} "}}"', f"arguments{i}: %json {arguments_schema(tool)}"]
    return "\n".join(rules)


def described(tools: Sequence[Tool]) -> str:
    """The tools as JSON, one a line."""
    functions = [{"name": t.name, "description": t.description or "", "parameters": dict(t.parameters)} for t in tools]
    return "\n".join(json.dumps({"type": "function", "function": f}, ensure_ascii=False) for f in functions)


def call_object(name: str, key: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON."""
    return json.dumps({"name": name, key: dict(arguments)}, ensure_ascii=False)
