"""Finds the fields of a request's body that its struct does not have, at any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from msgspec import inspect

from motet.api.schema.chat_messages import InputTextPart, Message, OutputTextPart, TextPart
from motet.api.schema.struct_types import described_type, struct_fields
from motet.api.schema.unsupported_fields import MESSAGE

# Fields that have no effect, or that were refused before (api/schema/unsupported_fields.py): not reported as unknown.
_ACCEPTED: Mapping[type, frozenset[str]] = {
    Message: frozenset({*MESSAGE, "annotations"}),
    TextPart: frozenset({"prompt_cache_breakpoint"}),
    InputTextPart: frozenset({"prompt_cache_breakpoint"}),
    OutputTextPart: frozenset({"annotations", "logprobs"}),
}


def unknown_names(body: object, kind: type[msgspec.Struct]) -> Iterator[str]:
    """The paths of the fields in `body` that `kind`, as which it was parsed, and its nested structs do not have."""
    return _unknown(body, described_type(kind), "")


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
            known = struct_fields(info.cls)
            for name, entry in value.items():
                if name in known:
                    yield from _unknown(entry, known[name], f"{where}{name}.")
                elif name not in _ACCEPTED.get(info.cls, ()) and name != info.tag_field:
                    yield f"{where}{name}"


def _has_fields(info: inspect.Type) -> bool:
    """Whether the type contains a struct; lists of numbers and strings need not be searched."""
    match info:
        case inspect.Metadata():
            return _has_fields(info.type)
        case inspect.UnionType():
            return any(map(_has_fields, info.types))
        case inspect.ListType():
            return _has_fields(info.item_type)
    return isinstance(info, inspect.StructType)
