"""Which fields of a body nobody knows, wherever in it they stand."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import inspect

from motet.api import schemas
from motet.api.unsupported import MESSAGE

# Fields that no struct has, since they change nothing, or are refused before (api/unsupported.py).
_ELSEWHERE: Mapping[type, frozenset[str]] = {
    schemas.Message: frozenset({*MESSAGE, "annotations"}),
    schemas.TextPart: frozenset({"prompt_cache_breakpoint"}),
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
