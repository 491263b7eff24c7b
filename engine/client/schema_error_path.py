"""Finds which part of a JSON schema makes it unusable: the library that compiles schemas does not say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MAX_TRIALS = 200
MAX_SECONDS = 0.5

_SHARED = ("$defs", "definitions", "x-guidance")
"""Keywords of the root that every part needs to compile alone as it does within the whole."""

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
"""What a message begins with, and the keyword that it is about."""


def schema_error_path(schema: Mapping[str, Any], message: str, problem: Callable[[dict[str, Any]], str]) -> str:
    """The path of the smallest part of `schema` that fails alone with `message`, as far as it is found in time.

    `problem` compiles a schema and returns its message.
    """
    shared = {name: schema[name] for name in _SHARED if name in schema}
    deadline, trials, path = time.monotonic() + MAX_SECONDS, 0, ""
    node, followed = schema, set[str]()
    while True:
        for step, part in _parts(schema, node):
            if step in followed or _reference(schema, part) in followed:
                continue
            trials += 1
            if trials > MAX_TRIALS or time.monotonic() > deadline:
                return path
            if problem({**shared, **part}) == message:
                break
        else:
            break
        if step.startswith("#"):  # the target of a reference is named from the root, whichever part refers to it
            followed.add(step)
            path = step.removeprefix("#")
        else:
            path = f"{path}.{step}" if path else step
        node = part
    keyword = next((word for start, word in _KEYWORDS.items() if message.startswith(start)), None)
    return ".".join(filter(None, (path, keyword))) if keyword in node else path


def _parts(root: Mapping[str, Any], node: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas directly within `node`, and the one that it refers to, each with the step that leads to it."""
    found: list[tuple[str, Any]] = []
    for keyword in _NAMED:
        entries = node.get(keyword)
        found += [(f"{keyword}.{name}", part) for name, part in entries.items()] if isinstance(entries, dict) else []
    for keyword in _LISTED:
        entries = node.get(keyword)
        found += [(f"{keyword}[{i}]", part) for i, part in enumerate(entries)] if isinstance(entries, list) else []
    found += [(keyword, node.get(keyword)) for keyword in _SINGLE]
    if (step := _reference(root, node)) is not None:
        place, _, name = step.removeprefix("#").partition(".")
        found.append((step, root[place].get(name)))
    yield from ((step, part) for step, part in found if isinstance(part, dict))


def _reference(root: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """The step that leads from `node` to the definition that it refers to; None if it refers to none."""
    match str(node.get("$ref")).split("/"):
        case ["#", "$defs" | "definitions" as place, name] if isinstance(root.get(place), dict):
            return f"#{place}.{name}"
    return None
