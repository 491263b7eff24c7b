"""What the tool parsers share whose calls are JSON objects: reading one as it comes, and a grammar for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import regex

from motet.core.output_format import GrammarSpec, slashed
from motet.core.tool_parser import CallPiece, Tool

# Models were taught all sorts of layouts; without a bound a weak one would write spaces for ever.
WHITESPACE = {"whitespace_pattern": r"\n? {0,12}"}

MAX_HEAD = 1024
"""Characters within which the name must have come for the arguments to stream."""

MAX_SPACE = 64
"""White space that is waited through for what may follow it."""

_UNSAYABLE = regex.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[bBkK1-9])")
"""Look-around, word boundaries and back references."""

_DATA = ("const", "enum", "default", "examples")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords of JSON schemas that have values in them, and names of the caller's own."""

_HEAD = regex.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ObjectEnd:
    """Finds the end of a JSON object in text that comes in pieces; `depth` braces are open already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
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
    """A call of one of `names`: an object with `name` and `arguments` (or `parameters`), read as it comes.

    Arguments stream if the name comes first, as it does from every model; else the call comes out when it is whole.
    An object whose last brace is missing ends with its arguments. Each piece is looked at once, however long the
    whole is. If the object of a tool with `raw_input` has the name alone, all that follows is its input.
    """

    def __init__(self, index: int, tools: Sequence[Tool]) -> None:
        self.index, self._names = index, {tool.name for tool in tools}
        self._raw_names = {tool.name for tool in tools if tool.raw_input is not None}
        self._is_raw = self._input_begun = False
        self.started = False
        self.raw = ""  # everything until it has started, in case it is no call
        self.rest: str | None = None  # what follows the object, once that is complete
        self.failed = False  # it is complete, or broken, and no call
        self.begun = False  # there is a brace
        self._foreign = False  # its name is of none of them
        self._whole, self._arguments = ObjectEnd(), ObjectEnd()
        self._arguments_open = False
        self._tail = ""  # what has come after the arguments, until it is clear what it is
        self._more: ObjectEnd | None = None  # other fields come after the arguments

    def push(self, text: str) -> list[CallPiece]:
        """The pieces that `text` adds. Look at `rest` and `failed` afterwards."""
        if self._is_raw:
            return self._input(text)
        if self._arguments_open:
            return self._stream(text)
        if self.started:
            self._end(text)
            return []
        self.raw += text
        if not self.begun:
            ahead = self.raw.lstrip()
            self.begun = ahead.startswith("{") and len(self.raw) - len(ahead) <= MAX_SPACE
            self.failed = not self.begun and bool(ahead or len(self.raw) > MAX_SPACE)
        if self.failed:
            return []
        if not self._foreign and len(self.raw) <= MAX_HEAD + len(text) and (head := _HEAD.match(self.raw)):
            name = _decoded(head[1])
            self._foreign = name not in self._names or head.end() > MAX_HEAD
            if not self._foreign:
                self.started = self._arguments_open = True
                return [CallPiece(self.index, name), *self._stream(self.raw[head.end() :])]
        end = self._whole.push(text)
        if end is None:
            return []
        self.rest = text[end:]
        self.raw = self.raw[: len(self.raw) - len(self.rest)]
        return self._at_once()

    def _stream(self, text: str) -> list[CallPiece]:
        end = self._arguments.push(text)
        self._arguments_open = end is None
        piece = text if end is None else text[:end]
        if end is not None:
            self._end(text[end:])
        return [CallPiece(self.index, arguments=piece)] if piece else []

    def _end(self, text: str) -> None:
        """Take what comes after the arguments: a brace, or more fields and a brace; if neither, it was left out."""
        if self._more is not None:
            end = self._more.push(text)
            self.rest = None if end is None else text[end:]
            return
        self._tail += text
        ahead = self._tail.lstrip()
        if len(self._tail) - len(ahead) > MAX_SPACE:
            self.rest = self._tail[MAX_SPACE + 1 :]
        elif ahead.startswith("}"):
            self.rest = ahead[1:]
        elif ahead.startswith(","):
            self._more = ObjectEnd(depth=1)
            self._end(ahead)
        elif ahead:
            self.rest = ahead

    def _input(self, text: str) -> list[CallPiece]:
        if not self._input_begun and text:
            self._input_begun = True
            text = text.removeprefix("\n")
        return [CallPiece(self.index, arguments=text)] if text else []

    def _at_once(self) -> list[CallPiece]:
        """The whole object as a call, in whatever order its fields came."""
        try:
            call = msgspec.json.decode(self.raw)
            if set(call) == {"name"} and call["name"] in self._raw_names:
                self.started = self._is_raw = True
                text, self.rest = self.rest or "", None
                return [CallPiece(self.index, call["name"], raw=True), *self._input(text)]
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):  # some write the arguments as JSON in a text, as the API shows them
                arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError, AttributeError):
            name = arguments = None
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            self.failed = True
            return []
        self.started = True
        return [CallPiece(self.index, name), CallPiece(self.index, arguments=json.dumps(arguments, ensure_ascii=False))]


def _decoded(quoted: str) -> str:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return quoted[1:-1]


def guided(schema: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """A JSON schema as a grammar is made of it. Unless it is `strict`, what no grammar can say does not count."""
    if strict:
        return {**schema, "x-guidance": WHITESPACE}
    return {**_sayable(schema), "x-guidance": {**WHITESPACE, "lenient": True}}


def _sayable(schema: Any, keywords: bool = True) -> Any:
    """The schema without the patterns that no grammar can say; `keywords`: its own names are not the caller's."""
    if isinstance(schema, list):
        return [_sayable(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {}
    for name, value in schema.items():
        if keywords and name == "pattern" and isinstance(value, str) and _UNSAYABLE.search(value):
            continue
        is_data = keywords and name in _DATA
        found[name] = value if is_data else _sayable(value, not (keywords and name in _NAMED))
    return found


_ADMITTING = ("$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "minProperties", "required")
"""Keywords that make or let an object have members though its `properties` is empty."""


def arguments_schema(tool: Tool) -> str:
    """The tool's parameters as a JSON schema for a grammar; without any parameters, an empty object."""
    schema = dict(tool.parameters) or {"properties": {}}
    if schema.get("properties") == {} and not any(schema.get(name) for name in _ADMITTING):
        schema.setdefault("additionalProperties", False)
    return json.dumps(guided({"type": "object", **schema}, tool.strict), ensure_ascii=False)


def calls(tools: Sequence[Tool], call: str, raw_call: str, between: str, several: bool) -> str:
    """The right side of a Lark rule: one call, or several; after one with raw input, none can follow."""
    has_raw = any(tool.raw_input is not None for tool in tools)
    has_plain = any(tool.raw_input is None for tool in tools)
    if not has_plain:
        return raw_call
    if has_raw:
        before = f"({call} {between})* " if several else ""
        return f"{before}({call} | {raw_call})"
    return f"{call} ({between} {call})*" if several else call


def call_rules(tools: Sequence[Tool], key: str) -> str:
    """Lark rules for a JSON object that calls one of `tools`, and what it is made of.

    `object` calls one that has arguments, `raw_object` one that has raw input, which comes after it.
    """
    plain = [tool for tool in tools if tool.raw_input is None]
    raw = [tool for tool in tools if tool.raw_input is not None]
    rules = ["object: " + " | ".join(f"object{i}" for i in range(len(plain)))] if plain else []
    for i, tool in enumerate(plain):
        name = json.dumps(tool.name)
        opening = json.dumps(f'{{"name": {name}, "{key}": ')
        rules += [f'object{i}: {opening} arguments{i} "}}"', f"arguments{i}: %json {arguments_schema(tool)}"]
    rules += ["raw_object: " + " | ".join(f"raw_object{i}" for i in range(len(raw)))] if raw else []
    for i, tool in enumerate(raw):
        opening = json.dumps(f'{{"name": {json.dumps(tool.name)}}}\n')
        rules += [f"raw_object{i}: {opening} raw_input{i}", f"raw_input{i}: {_nested(tool.raw_input)}"]
    return "\n".join(rules)


def _nested(spec: GrammarSpec | None) -> str:
    """A grammar as a part of another one's rule."""
    assert spec is not None, "only tools with raw input have one"
    match spec.kind:
        case "lark":
            return f"%lark {{\n{spec.text}\n}}"
        case "regex":
            return f"/{slashed(spec.text)}/"
        case "json_schema":
            return f"%json {spec.text}"


def described(tools: Sequence[Tool]) -> str:
    """The tools as JSON, one a line."""
    functions = [{"name": t.name, "description": t.description or "", "parameters": dict(t.parameters)} for t in tools]
    return "\n".join(json.dumps({"type": "function", "function": f}, ensure_ascii=False) for f in functions)


def call_object(name: str, key: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON."""
    return json.dumps({"name": name, key: dict(arguments)}, ensure_ascii=False)
