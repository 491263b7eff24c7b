"""Tool calls as JSON objects: an incremental reader and grammar rules, shared by the tool parsers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import regex

from motet.core.output_format import GrammarSpec, escape_for_lark
from motet.core.tool_parser import CallPiece, Tool

# Models use different layouts. The bound keeps a weak model from writing spaces forever.
WHITESPACE = {"whitespace_pattern": r"\n? {0,12}"}

MAX_HEAD = 1024
"""Arguments stream only if the name is complete within this many characters."""

MAX_SPACE = 64
"""Characters of white space that are held back at most until it is clear what follows."""

_UNSUPPORTED = regex.compile(r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[bBkK1-9])")
"""Look-around, word boundaries and back references: grammars do not support them."""

_DATA_KEYWORDS = ("const", "enum", "default", "examples")
_NAME_KEYWORDS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""JSON schema keywords whose value is data, and keywords whose members have names chosen by the caller."""

_HEAD = regex.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class ObjectEnd:
    """Finds the end of a JSON object in text that arrives in pieces; `depth` braces are already open."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = self._escaped = False

    def push(self, text: str) -> int | None:
        """How many characters of `text` belong to the object, if `text` completes it; else None."""
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
    """Incrementally reads a call of one of `tools`: an object with `name` and `arguments` (or `parameters`).

    Arguments stream if the name comes first, as in all known models; otherwise the complete call is returned at once.
    An object without its last brace ends with its arguments. Each piece is scanned once, so time is linear.
    If the object has only a name, of a tool with `raw_input`, all text after it is the input.
    """

    def __init__(self, index: int, tools: Sequence[Tool]) -> None:
        self.index, self._names = index, {tool.name for tool in tools}
        self._raw_names = {tool.name for tool in tools if tool.raw_input is not None}
        self._is_raw = self._input_started = False
        self.started = False
        self.raw = ""  # the text before `started`, needed if it is not a call
        self.rest: str | None = None  # the text after the object, once the object is complete
        self.failed = False  # the text is not a call
        self.has_brace = False  # the opening brace was read
        self._cannot_stream = False  # the call cannot stream: its name is unknown or too late
        self._whole, self._arguments = ObjectEnd(), ObjectEnd()
        self._arguments_open = False
        self._tail = ""  # the undecided text after the arguments
        self._later_fields: ObjectEnd | None = None  # reads the fields after the arguments

    def push(self, text: str) -> list[CallPiece]:
        """The pieces that `text` adds. Check `rest` and `failed` afterwards."""
        if self._is_raw:
            return self._raw_input(text)
        if self._arguments_open:
            return self._stream(text)
        if self.started:
            self._read_end(text)
            return []
        self.raw += text
        if not self.has_brace:
            ahead = self.raw.lstrip()
            self.has_brace = ahead.startswith("{") and len(self.raw) - len(ahead) <= MAX_SPACE
            self.failed = not self.has_brace and bool(ahead or len(self.raw) > MAX_SPACE)
        if self.failed:
            return []
        if not self._cannot_stream and len(self.raw) <= MAX_HEAD + len(text) and (head := _HEAD.match(self.raw)):
            name = _decoded(head[1])
            self._cannot_stream = name not in self._names or head.end() > MAX_HEAD
            if not self._cannot_stream:
                self.started = self._arguments_open = True
                return [CallPiece(self.index, name), *self._stream(self.raw[head.end() :])]
        end = self._whole.push(text)
        if end is None:
            return []
        self.rest = text[end:]
        self.raw = self.raw[: len(self.raw) - len(self.rest)]
        return self._complete_call()

    def _stream(self, text: str) -> list[CallPiece]:
        end = self._arguments.push(text)
        self._arguments_open = end is None
        piece = text if end is None else text[:end]
        if end is not None:
            self._read_end(text[end:])
        return [CallPiece(self.index, arguments=piece)] if piece else []

    def _read_end(self, text: str) -> None:
        """Read the end of the object: a brace, or more fields and a brace. The brace may be missing."""
        if self._later_fields is not None:
            end = self._later_fields.push(text)
            self.rest = None if end is None else text[end:]
            return
        self._tail += text
        ahead = self._tail.lstrip()
        if len(self._tail) - len(ahead) > MAX_SPACE:
            self.rest = self._tail[MAX_SPACE + 1 :]
        elif ahead.startswith("}"):
            self.rest = ahead[1:]
        elif ahead.startswith(","):
            self._later_fields = ObjectEnd(depth=1)
            self._read_end(ahead)
        elif ahead:
            self.rest = ahead

    def _raw_input(self, text: str) -> list[CallPiece]:
        if not self._input_started and text:
            self._input_started = True
            text = text.removeprefix("\n")
        return [CallPiece(self.index, arguments=text)] if text else []

    def _complete_call(self) -> list[CallPiece]:
        """The complete object as a call; its fields may be in any order."""
        try:
            call = msgspec.json.decode(self.raw)
            if set(call) == {"name"} and call["name"] in self._raw_names:
                self.started = self._is_raw = True
                text, self.rest = self.rest or "", None
                return [CallPiece(self.index, call["name"], raw=True), *self._raw_input(text)]
            name, arguments = call["name"], call.get("arguments", call.get("parameters", {}))
            if isinstance(arguments, str):  # some models write the arguments as a JSON string, as in the API
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


def grammar_schema(schema: Mapping[str, Any], strict: bool) -> dict[str, Any]:
    """A JSON schema prepared for a grammar. Unless `strict`, drops what a grammar cannot express."""
    if strict:
        return {**schema, "x-guidance": WHITESPACE}
    return {**_without_unsupported(schema), "x-guidance": {**WHITESPACE, "lenient": True}}


def _without_unsupported(schema: Any, keywords: bool = True) -> Any:
    """The schema without unsupported patterns. `keywords`: its member names are keywords, not the caller's names."""
    if isinstance(schema, list):
        return [_without_unsupported(entry) for entry in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {}
    for name, value in schema.items():
        if keywords and name == "pattern" and isinstance(value, str) and _UNSUPPORTED.search(value):
            continue
        is_data = keywords and name in _DATA_KEYWORDS
        result[name] = value if is_data else _without_unsupported(value, not (keywords and name in _NAME_KEYWORDS))
    return result


_MEMBER_KEYWORDS = ("$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "minProperties", "required")
"""Keywords that require or allow members although `properties` is empty."""


def arguments_schema(tool: Tool) -> str:
    """The tool's parameters as a JSON schema for a grammar; an empty object if it has no parameters."""
    schema = dict(tool.parameters) or {"properties": {}}
    if schema.get("properties") == {} and not any(schema.get(name) for name in _MEMBER_KEYWORDS):
        schema.setdefault("additionalProperties", False)
    return json.dumps(grammar_schema({"type": "object", **schema}, tool.strict), ensure_ascii=False)


def calls(tools: Sequence[Tool], call: str, raw_call: str, between: str, several: bool) -> str:
    """The right side of a Lark rule: one call, or several; a call with raw input is the last."""
    has_raw = any(tool.raw_input is not None for tool in tools)
    has_plain = any(tool.raw_input is None for tool in tools)
    if not has_plain:
        return raw_call
    if has_raw:
        before = f"({call} {between})* " if several else ""
        return f"{before}({call} | {raw_call})"
    return f"{call} ({between} {call})*" if several else call


def call_rules(tools: Sequence[Tool], key: str) -> str:
    """Lark rules for a JSON object that calls one of `tools`.

    `object` calls a tool with arguments; `raw_object` calls a tool with raw input and includes that input.
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
    """A grammar embedded in a Lark rule."""
    assert spec is not None, "only tools with raw input have one"
    match spec.kind:
        case "lark":
            return f"%lark {{\n{spec.text}\n}}"
        case "regex":
            return f"/{escape_for_lark(spec.text)}/"
        case "json_schema":
            return f"%json {spec.text}"


def describe_tools(tools: Sequence[Tool]) -> str:
    """The tools as JSON, one per line."""
    functions = [{"name": t.name, "description": t.description or "", "parameters": dict(t.parameters)} for t in tools]
    return "\n".join(json.dumps({"type": "function", "function": f}, ensure_ascii=False) for f in functions)


def call_object(name: str, key: str, arguments: Mapping[str, Any]) -> str:
    """A call as JSON."""
    return json.dumps({"name": name, key: dict(arguments)}, ensure_ascii=False)
