"""Finds the part of a JSON schema that does not compile: the library's error message does not say where it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_COMPILATIONS = 200
MAX_SECONDS = 0.5

_SHARED = ("$defs", "definitions", "x-guidance")
"""Keywords of the root that every part needs to compile on its own."""

_NAMED = ("properties", "patternProperties")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")

_KEYWORDS = {
    "oneOf constraints": "oneOf",
    "Invalid type": "type",
    "Unknown format": "format",
    "regex parse error": "pattern",
    "Resource ": "$ref",
}
"""The start of an error message, and the keyword that it is about."""


def schema_error_path(schema: Mapping[str, Any], message: str, compile_error: Callable[[dict[str, Any]], str]) -> str:
    """The path of the smallest part of `schema` that fails with `message` on its own, within the limits.

    `compile_error` compiles a schema and returns its error message.
    """
    shared = {name: schema[name] for name in _SHARED if name in schema}
    deadline, compilations, path = time.monotonic() + MAX_SECONDS, 0, ""
    node, followed = schema, set[str]()
    while True:
        for step, part in _parts(schema, node):
            if step in followed or _reference(schema, part) in followed:
                continue
            compilations += 1
            if compilations > MAX_COMPILATIONS or time.monotonic() > deadline:
                return path
            if compile_error({**shared, **part}) == message:
                break
        else:
            break
        if step.startswith("#"):  # the target of a reference has its path from the root
            followed.add(step)
            path = step.removeprefix("#")
        else:
            path = f"{path}.{step}" if path else step
        node = part
    keyword = next((word for start, word in _KEYWORDS.items() if message.startswith(start)), None)
    return ".".join(filter(None, (path, keyword))) if keyword in node else path


def _parts(root: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas directly within `node`, and the target of its reference, each with its step in the path."""
    parts: list[tuple[str, Any]] = []
    for keyword in _NAMED:
        entries = node.get(keyword)
        parts += [(f"{keyword}.{name}", part) for name, part in entries.items()] if isinstance(entries, dict) else []
    for keyword in _LISTED:
        entries = node.get(keyword)
        parts += [(f"{keyword}[{i}]", part) for i, part in enumerate(entries)] if isinstance(entries, list) else []
    parts += [(keyword, node.get(keyword)) for keyword in _SINGLE]
    if (step := _reference(root, node)) is not None:
        keyword, _, name = step.removeprefix("#").partition(".")
        parts.append((step, root[keyword].get(name)))
    yield from ((step, part) for step, part in parts if isinstance(part, dict))


def _reference(root: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """The path step from `node` to the definition that it references; None without a reference."""
    match str(node.get("$ref")).split("/"):
        case ["#", "$defs" | "definitions" as keyword, name] if isinstance(root.get(keyword), dict):
            return f"#{keyword}.{name}"
    return None
