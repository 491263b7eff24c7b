"""Items of OpenAI's hosted tools in a conversation: those with text become tool calls in the model's prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from motet.api.schema.chat_messages import FunctionCall, ToolCall

PREFIXES = {
    "local_shell_call": "lsh",
    "local_shell_call_output": "lsho",
    "shell_call": "sh",
    "shell_call_output": "sho",
    "apply_patch_call": "apc",
    "apply_patch_call_output": "apco",
    "file_search_call": "fs",
    "code_interpreter_call": "ci",
    "mcp_call": "mcp",
    "web_search_call": "ws",
    "image_generation_call": "ig",
    "computer_call": "cu",
    "computer_call_output": "cuo",
    "mcp_list_tools": "mcpl",
    "mcp_approval_request": "mcpr",
    "mcp_approval_response": "mcpa",
    "tool_search_call": "tsc",
    "tool_search_output": "tso",
    "compaction": "cmp",
    "compaction_summary": "cmp",
    "context_compaction": "cmp",
}
"""The types of items, and the prefixes of their ids."""

_TEXTS = {
    "local_shell_call": ("action",),
    "local_shell_call_output": ("output",),
    "shell_call": ("action",),
    "shell_call_output": ("output",),
    "apply_patch_call": ("operation",),
    "apply_patch_call_output": ("output",),
    "file_search_call": ("queries", "results"),
    "code_interpreter_call": ("code", "outputs"),
    "mcp_call": ("name", "arguments", "output", "error"),
}
"""The fields that become part of the prompt; an item with none of them is left out."""


def stored_fields(item: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an item that are stored: those that the prompt uses, and ids."""
    names = ("call_id", "server_label", *_TEXTS.get(item["type"], ()))
    return {name: item[name] for name in names if item.get(name) is not None}


def is_left_out(item: Mapping[str, Any]) -> bool:
    """Whether a hosted item adds nothing to the prompt."""
    return tool_call(item) is None and result(item) is None


def tool_call(item: Mapping[str, Any]) -> ToolCall | None:
    """The item as a tool call, if it has the fields for one."""
    kind = item["type"]
    match kind:
        case "local_shell_call" | "shell_call":
            return _call(item, item.get("action"))
        case "apply_patch_call":
            return _call(item, item.get("operation"))
        case "file_search_call" if _results(item):
            return _call(item, {"queries": item.get("queries") or []})
        case "code_interpreter_call" if isinstance(item.get("code"), str):
            return _call(item, {"code": item["code"]})
        case "mcp_call" if isinstance(item.get("name"), str) and isinstance(item.get("arguments"), str):
            return ToolCall(call_id(item), FunctionCall(item["name"], item["arguments"]))
    return None


def result(item: Mapping[str, Any]) -> str | None:
    """The result of a call, if the item has one."""
    match item["type"]:
        case "local_shell_call_output" | "shell_call_output" | "apply_patch_call_output":
            return _as_text(item.get("output"))
        case "file_search_call":
            return _results(item)
        case "code_interpreter_call" if tool_call(item) is not None:
            return _results(item, "outputs") or ""
        case "mcp_call" if tool_call(item) is not None:
            return _as_text(item.get("output")) or _as_text(item.get("error")) or ""
    return None


def call_id(item: Mapping[str, Any]) -> str:
    """The id by which a call and its output are paired."""
    return str(item.get("call_id") or item.get("id") or "")


def _call(item: Mapping[str, Any], arguments: object) -> ToolCall | None:
    if not isinstance(arguments, dict):
        return None
    name = item["type"].removesuffix("_call")
    return ToolCall(call_id(item), FunctionCall(name, json.dumps(arguments, ensure_ascii=False)))


def _results(item: Mapping[str, Any], field: str = "results") -> str | None:
    parts = item.get(field)
    texts = [_part(part) for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return "\n".join(filter(None, texts)) or None


def _part(part: Mapping[str, Any]) -> str:
    return "\n".join(str(part[name]) for name in ("filename", "text", "logs") if isinstance(part.get(name), str))


def _as_text(value: object) -> str | None:
    return value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)
