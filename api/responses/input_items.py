"""Parses input items, and converts them to stored items and to chat messages."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from motet.api.responses import hosted_items
from motet.api.schema.chat_messages import CustomCall, FunctionCall, Message, ToolCall
from motet.api.schema.unsupported_fields import TEXT_PARTS
from motet.core import error_codes
from motet.core.errors import InvalidRequest

ROLES = ("user", "assistant", "system", "developer")

# The types of items, and the prefixes of their ids.
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    **hosted_items.PREFIXES,
}

# Their fields that are read or have no effect.
_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "namespace", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "namespace", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "reasoning": ("summary", "content", "encrypted_content"),
    "item_reference": (),
}
_PART_FIELDS = ("type", "text", "refusal", "annotations", "logprobs", "prompt_cache_breakpoint")

_OMITTED = {
    "input_image": "[image omitted: this server reads text only]",
    "input_file": "[file omitted: this server reads text only]",
    "input_audio": "[audio omitted: this server reads text only]",
    "encrypted_content": "[encrypted content omitted]",
}
"""Replaces parts that are not text in the outputs of tools: refusing one would refuse every later turn as well."""


def input_items(input: str | Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """`input` as items, each with an id; references stay references. Raises InvalidRequest with the path at fault."""
    if isinstance(input, str):
        input = [{"role": "user", "content": input}]
    return [_item(item, f"input[{index}]") for index, item in enumerate(input or ())]


def unknown_in_items(input: str | Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    """The paths of ignored fields, parts and whole items, for items that `input_items` has accepted."""
    for index, item in enumerate(input or () if not isinstance(input, str) else ()):
        kind = str(_kind(item))
        if kind in hosted_items.PREFIXES and hosted_items.is_left_out(item):
            yield f"input[{index}].{kind}"
        fields = _FIELDS.get(kind)
        if fields is None:
            continue
        for name, value in item.items():
            where = f"input[{index}].{name}"
            if name not in (*fields, "type", "id", "status"):
                yield where
            elif name in ("content", "output") and isinstance(value, list):
                yield from _unknown_in_parts(value, where, name == "output")


def _unknown_in_parts(parts: Sequence[object], where: str, is_output: bool) -> Iterator[str]:
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        if is_output and part.get("type") in _OMITTED:
            yield f"{where}[{index}].{part['type']}"
        else:
            yield from (f"{where}[{index}].{field}" for field in part if field not in _PART_FIELDS)


def with_unique_ids(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items, each with an id that no earlier item has."""
    seen: set[str] = set()
    unique = []
    for item in items:
        id = item["id"] if item["id"] not in seen else _new_id(_PREFIXES[item["type"]])
        seen.add(id)
        unique.append({**item, "id": id})
    return unique


def _item(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = _kind(item)
    match kind:
        case "message":
            return _message(item, where)
        case "function_call" | "custom_tool_call":
            fields = ["call_id", "name", "arguments" if kind == "function_call" else "input"]
            fields += ["namespace"] if item.get("namespace") is not None else []
            values: dict[str, Any] = {name: _text(item.get(name), f"{where}.{name}") for name in fields}
            return {"type": kind, "id": _id(item, kind), "status": "completed", **values}
        case "function_call_output" | "custom_tool_call_output":
            output = _without_media(item.get("output"))
            _content(output, f"{where}.output")
            values = {"call_id": _text(item.get("call_id"), f"{where}.call_id"), "output": output}
            return {"type": kind, "id": _id(item, kind), "status": "completed", **values}
        case str() if kind in hosted_items.PREFIXES:
            return {"type": kind, "id": _id(item, kind), "status": "completed", **hosted_items.stored_fields(item)}
        case "reasoning":  # possibly of another model; this one cannot use it
            return {"type": kind, "id": _id(item, kind), "summary": []}
        case "item_reference":
            return {"type": kind, "id": _text(item.get("id"), f"{where}.id")}
    raise InvalidRequest(
        f"the type {str(kind)[:64]!r} is not supported; it must be one of {', '.join(_PREFIXES)}, item_reference",
        param=f"{where}.type",
        code=error_codes.UNSUPPORTED_VALUE,
    )


def _kind(item: Mapping[str, Any]) -> Any:
    kind = item.get("type")
    if kind is not None:
        return kind
    # In OpenAI's API, messages and references need no type.
    return "message" if "role" in item or "content" in item or "id" not in item else "item_reference"


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"the role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    content = _content(item.get("content"), f"{where}.content")
    kind = "output_text" if role == "assistant" else "input_text"
    parts: list[dict[str, Any]] = [
        {"type": kind, "text": part["text"]} | ({"annotations": []} if role == "assistant" else {}) for part in content
    ]
    return {"type": "message", "id": _id(item, "message"), "status": "completed", "role": role, "content": parts}


def _without_media(output: Any) -> Any:
    """A tool's output with its parts that are not text replaced by text."""
    if not isinstance(output, list):
        return output
    kinds = [part.get("type") if isinstance(part, dict) else None for part in output]
    return [
        {"type": "input_text", "text": _OMITTED[kind]} if isinstance(kind, str) and kind in _OMITTED else part
        for kind, part in zip(kinds, output, strict=True)
    ]


def _content(content: Any, where: str) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where} must be a string or a list of parts",
            param=where,
            code=error_codes.MISSING_REQUIRED_PARAMETER if content is None else error_codes.INVALID_TYPE,
        )
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or kind not in TEXT_PARTS:
            raise InvalidRequest(
                f"{str(kind)[:64]!r} parts are not supported, since the model reads text only; supported parts are "
                f"{', '.join(TEXT_PARTS)}",
                param=f"{where}[{index}].type",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        field = "refusal" if part["type"] == "refusal" else "text"
        parts.append({"text": _text(part.get(field), f"{where}[{index}].{field}")})
    return parts


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        code = error_codes.MISSING_REQUIRED_PARAMETER if value is None else error_codes.INVALID_TYPE
        raise InvalidRequest(f"{where} must be a string", param=where, code=code)
    return value


def _id(item: Mapping[str, Any], kind: str) -> str:
    own = item.get("id")
    return own if isinstance(own, str) and 0 < len(own) <= 64 else _new_id(_PREFIXES[kind])


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def chat_messages(items: Iterable[Mapping[str, Any]], flat_name: Callable[[str | None, str], str]) -> list[Message]:
    """The items as chat messages; `flat_name` returns the chat's name for a tool of a namespace.

    Consecutive calls, with the assistant's texts before, between and after them, become one message before the results.
    """
    messages: list[Message] = []
    for item in items:
        last = messages[-1] if messages and messages[-1].role == "assistant" else None
        match item["type"]:
            case "message":
                text = "".join(part["text"] for part in item["content"])
                if item["role"] == "assistant" and last is not None and last.tool_calls:
                    text = "\n".join(filter(None, (last.text(), text)))
                    messages[-1] = Message("assistant", text, tool_calls=last.tool_calls)
                else:
                    messages.append(Message(item["role"], text))
            case "function_call_output" | "custom_tool_call_output":
                text = "".join(part["text"] for part in _content(item["output"], "output"))
                messages.append(Message("tool", text, tool_call_id=item["call_id"]))
            case _:
                if (call := _call(item, flat_name)) is not None:
                    calls = [*((last.tool_calls if last else None) or ()), call]
                    if last is not None:
                        messages.pop()
                    messages.append(Message("assistant", last.content if last else None, tool_calls=calls))
                if (text_or_none := hosted_items.result(item)) is not None:
                    messages.append(Message("tool", text_or_none, tool_call_id=hosted_items.call_id(item)))
    return messages


def _call(item: Mapping[str, Any], flat_name: Callable[[str | None, str], str]) -> ToolCall | None:
    match item["type"]:
        case "function_call":
            name = flat_name(item.get("namespace"), item["name"])
            return ToolCall(item["call_id"], FunctionCall(name, item["arguments"]))
        case "custom_tool_call":
            custom = CustomCall(flat_name(item.get("namespace"), item["name"]), item["input"])
            return ToolCall(item["call_id"], type="custom", custom=custom)
    return hosted_items.tool_call(item)
