"""What the structs of requests say of a body's fields: which of them nobody knows, and what one may be."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import inspect

from motet.api.schema import requests
from motet.api.schema.unsupported_fields import MESSAGE

# Fields that no struct has, since they change nothing, or are refused before (api/schema/unsupported_fields.py).
_ELSEWHERE: Mapping[type, frozenset[str]] = {
    requests.Message: frozenset({*MESSAGE, "annotations"}),
    requests.TextPart: frozenset({"prompt_cache_breakpoint"}),
    requests.InputTextPart: frozenset({"prompt_cache_breakpoint"}),
    requests.OutputTextPart: frozenset({"annotations", "logprobs"}),
}


def unknown_names(body: object, kind: type[msgspec.Struct]) -> Iterator[str]:
    """The paths of the fields in `body`, which was understood as `kind`, that `kind` and what is in it do not have."""
    return _unknown(body, _described(kind), "")


def _unknown(value: object, info: inspect.Type, where: str) -> Iterator[str]:
    match info:
        case inspect.Metadata():
            yield from _unknown(value, info.type, where)
        case inspect.UnionType():
            for member in info.types:
                yield from _unknown(value, member, where)
        case inspect.ListType() if isinstance(value, list) and _has_fields(info.item_type):
            for index, entry in enumerate(value):
                yield from _unknown(entry, info.item_type, f"{where.removesuffix('.')}[{index}].")
        case inspect.StructType() if isinstance(value, dict) and info.tag in (None, value.get(info.tag_field or "")):
            known = _fields(info.cls)
            for name, entry in value.items():
                if name in known:
                    yield from _unknown(entry, known[name], f"{where}{name}.")
                elif name not in _ELSEWHERE.get(info.cls, ()) and name != info.tag_field:
                    yield f"{where}{name}"


def with_integers(body: object, kind: type[msgspec.Struct]) -> object:
    """`body` with whole numbers such as 8.0 as integers where `kind` has an integer there."""
    return _with_integers(body, _described(kind))


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
            known = _fields(structs[0].cls) if len(structs) == 1 else {}
            return {
                name: _with_integers(entry, known[name]) if name in known else entry for name, entry in value.items()
            }
    return value


def choices(kind: type[msgspec.Struct], place: str) -> tuple[str, ...]:
    """The texts that the field at `place`, such as `messages[0].role`, may hold; empty if it may hold any."""
    found: list[inspect.Type] = [_described(kind)]
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
    """The types of what `step`, a field's name or an index, leads to."""
    for plain in _plain(info):
        match plain:
            case inspect.ListType():
                yield plain.item_type
            case inspect.StructType() if step in (known := _fields(plain.cls)):
                yield known[step]
            case inspect.StructType(tag_field=tag_field, tag=tag) if step == tag_field and tag is not None:
                yield inspect.LiteralType((tag,))


def _plain(info: inspect.Type) -> Iterator[inspect.Type]:
    """The types of which a union is made, or `info` itself, without what is said of them."""
    match info:
        case inspect.Metadata():
            yield from _plain(info.type)
        case inspect.UnionType():
            for member in info.types:
                yield from _plain(member)
        case _:
            yield info


def _has_fields(info: inspect.Type) -> bool:
    """Whether there is a struct in it: lists of numbers and texts need no looking through."""
    match info:
        case inspect.Metadata():
            return _has_fields(info.type)
        case inspect.UnionType():
            return any(map(_has_fields, info.types))
        case inspect.ListType():
            return _has_fields(info.item_type)
    return isinstance(info, inspect.StructType)


@functools.cache
def _described(kind: type) -> inspect.Type:
    # Kept: describing a type takes milliseconds.
    return inspect.type_info(kind)


@functools.cache
def _fields(kind: type) -> Mapping[str, inspect.Type]:
    info = _described(kind)
    assert isinstance(info, inspect.StructType)
    return {field.encode_name: field.type for field in info.fields}
