"""Input items as chat messages, and as they are stored."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from motet.api.schemas import FunctionCall, Message, ToolCall
from motet.core.errors import InvalidRequest

TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
ROLES = ("user", "assistant", "system", "developer")

# The kinds of items, and what their ids begin with.
_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}

# Their fields that are read, or change nothing.
_FIELDS = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("summary", "content", "encrypted_content"),
    "item_reference": (),
}
_PART_FIELDS = ("type", "text", "refusal", "annotations", "logprobs", "prompt_cache_breakpoint")


def input_items(given: str | Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """`given` as items, each with an id; references stay references. Raises InvalidRequest naming what is wrong."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    return [_item(item, f"input[{index}]") for index, item in enumerate(given or ())]


def unknown_in_items(given: str | Sequence[Mapping[str, Any]] | None) -> Iterator[str]:
    """The paths of the fields in the items that nobody knows; `input_items` refuses what is no item."""
    for index, item in enumerate(given or () if not isinstance(given, str) else ()):
        fields = _FIELDS.get(str(_kind(item)))
        if fields is None:
            continue
        for name, value in item.items():
            where = f"input[{index}].{name}"
            if name not in (*fields, "type", "id", "status"):
                yield where
            elif name in ("content", "output") and isinstance(value, list):
                parts = ((n, part) for n, part in enumerate(value) if isinstance(part, dict))
                yield from (f"{where}[{n}].{field}" for n, part in parts for field in part if field not in _PART_FIELDS)


def with_own_ids(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The items, each with an id that none before it has."""
    seen: set[str] = set()
    own = []
    for item in items:
        id = item["id"] if item["id"] not in seen else _new_id(_PREFIXES[item["type"]])
        seen.add(id)
        own.append({**item, "id": id})
    return own


def _item(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = _kind(item)
    match kind:
        case "message":
            return _message(item, where)
        case "function_call":
            for field in ("call_id", "name", "arguments"):
                _text(item.get(field), f"{where}.{field}")
            kept = {name: item[name] for name in ("call_id", "name", "arguments")}
            return {"type": kind, "id": _id(item, kind), "status": "completed", **kept}
        case "function_call_output":
            _text(item.get("call_id"), f"{where}.call_id")
            _content(item.get("output"), f"{where}.output")
            kept = {name: item[name] for name in ("call_id", "output")}
            return {"type": kind, "id": _id(item, kind), "status": "completed", **kept}
        case "reasoning":  # of another model, perhaps: there is nothing that this one could do with it
            return {"type": kind, "id": _id(item, kind), "summary": []}
        case "item_reference":
            return {"type": kind, "id": _text(item.get("id"), f"{where}.id")}
    raise InvalidRequest(
        f"the type must be {', '.join(_PREFIXES)} or item_reference",
        param=f"{where}.type",
        code="unsupported_value",
    )


def _kind(item: Mapping[str, Any]) -> Any:
    kind = item.get("type")
    if kind is not None:
        return kind
    # OpenAI asks for a type neither of messages nor of references.
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


def _content(content: Any, where: str) -> list[dict[str, str]]:
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        raise InvalidRequest(
            f"{where} must be a text or a list of parts",
            param=where,
            code="missing_required_parameter" if content is None else "invalid_type",
        )
    parts: list[dict[str, str]] = []
    for index, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in TEXT_PARTS:
            raise InvalidRequest(
                "this server reads text parts only", param=f"{where}[{index}].type", code="unsupported_value"
            )
        field = "refusal" if part["type"] == "refusal" else "text"
        parts.append({"text": _text(part.get(field), f"{where}[{index}].{field}")})
    return parts


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise InvalidRequest(f"{where} must be a text", param=where, code=code)
    return value


def _id(item: Mapping[str, Any], kind: str) -> str:
    own = item.get("id")
    return own if isinstance(own, str) and 0 < len(own) <= 64 else _new_id(_PREFIXES[kind])


def _new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def chat_messages(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """The conversation that the items tell.

    Calls in a row, with the assistant's texts before, between and after them, are one message: results follow it.
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
            case "function_call":
                call = ToolCall(item["call_id"], FunctionCall(item["name"], item["arguments"]))
                if last is not None:
                    messages[-1] = Message("assistant", last.content, tool_calls=[*(last.tool_calls or ()), call])
                else:
                    messages.append(Message("assistant", None, tool_calls=[call]))
            case "function_call_output":
                text = "".join(part["text"] for part in _content(item["output"], "output"))
                messages.append(Message("tool", text, tool_call_id=item["call_id"]))
    return messages
