"""The types of a request struct's fields: which strings a field allows, and where it takes integers."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import inspect


def with_integers(body: object, kind: type[msgspec.Struct]) -> object:
    """`body` with floats such as 8.0 converted to integers where `kind` has an integer field."""
    return _with_integers(body, described_type(kind))


def _with_integers(value: object, info: inspect.Type) -> object:
    kinds = list(_plain(info))
    match value:
        case float() if value.is_integer() and any(isinstance(kind, inspect.IntType) for kind in kinds):
            return value if any(isinstance(kind, inspect.FloatType) for kind in kinds) else int(value)
        case list():
            lists = [kind for kind in kinds if isinstance(kind, inspect.ListType)]
            return [_with_integers(entry, lists[0].item_type) for entry in value] if lists else value
        case dict():
            structs = [kind for kind in kinds if isinstance(kind, inspect.StructType)]
            known = struct_fields(structs[0].cls) if len(structs) == 1 else {}
            return {
                name: _with_integers(entry, known[name]) if name in known else entry for name, entry in value.items()
            }
    return value


def choices(kind: type[msgspec.Struct], place: str) -> tuple[str, ...]:
    """The strings that the field at `place`, such as `messages[0].role`, allows; empty if it allows any."""
    found: list[inspect.Type] = [described_type(kind)]
    for step in re.findall(r"[^.\[\]]+", place):
        found = [inner for info in found for inner in _inside(info, step)]
    return tuple(
        str(value)
        for info in found
        for plain in _plain(info)
        if isinstance(plain, inspect.LiteralType)
        for value in plain.values
    )


def _inside(info: inspect.Type, step: str) -> Iterator[inspect.Type]:
    """The types of the value at `step`, which is a field's name or an index."""
    for plain in _plain(info):
        match plain:
            case inspect.ListType():
                yield plain.item_type
            case inspect.StructType() if step in (known := struct_fields(plain.cls)):
                yield known[step]
            case inspect.StructType(tag_field=tag_field, tag=tag) if step == tag_field and tag is not None:
                yield inspect.LiteralType((tag,))


def _plain(info: inspect.Type) -> Iterator[inspect.Type]:
    """A union's members, or `info` itself; without metadata."""
    match info:
        case inspect.Metadata():
            yield from _plain(info.type)
        case inspect.UnionType():
            for member in info.types:
                yield from _plain(member)
        case _:
            yield info


@functools.cache
def described_type(kind: type) -> inspect.Type:
    """msgspec's description of `kind`; cached, because making one takes milliseconds."""
    return inspect.type_info(kind)


@functools.cache
def struct_fields(kind: type) -> Mapping[str, inspect.Type]:
    """The types of a struct's fields, by their names in JSON."""
    info = described_type(kind)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field.type for field in info.fields}
