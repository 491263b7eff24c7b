"""Anthropic's tools and tool_choice as a chat request has them; tools that Anthropic runs are left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from motet.api.anthropic.requests import ClientTool, ToolChoice
from motet.api.schema.chat_tools import FunctionDefinition, FunctionTool
from motet.api.schema.parsing import convert
from motet.api.schema.unknown_fields import unknown_names
from motet.core import error_codes
from motet.core.errors import InvalidRequest
from motet.core.excerpt import shortened

# Anthropic's own tools have a date in their type (web_search_20250305, bash_20250124), or are a whole MCP server.
_SERVER_TYPE = re.compile(r"[a-z0-9_]+_\d{8}|mcp_toolset")


@dataclass(frozen=True)
class OfferedTools:
    """The tools of a request.

    `places` holds the index of each function in the caller's list, `left_out` the names of the tools that Anthropic
    runs, and `ignored` the paths of everything that has no effect.
    """

    functions: tuple[FunctionTool, ...]
    places: tuple[int, ...]
    left_out: frozenset[str]
    ignored: tuple[str, ...]

    def choice(self, asked: ToolChoice | None) -> Any:
        """The chat request's tool_choice. Raises InvalidRequest."""
        if asked is not None and asked.type == "any" and self.left_out and not self.functions:
            raise InvalidRequest(
                "tool_choice asks for a call, and all tools are ones that Anthropic runs; they are not available here",
                param="tool_choice",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        if asked is None or asked.type != "tool":
            return None if asked is None else {"any": "required"}.get(asked.type, asked.type)
        if asked.name is None:
            raise InvalidRequest(
                "tool_choice.name is missing", param="tool_choice.name", code=error_codes.MISSING_REQUIRED_PARAMETER
            )
        if asked.name in self.left_out:
            raise InvalidRequest(
                f"tool_choice names {shortened(asked.name)!r}, a tool that Anthropic runs; it is not available here",
                param="tool_choice",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        return {"type": "function", "function": {"name": asked.name}}


def offered_tools(given: Sequence[Mapping[str, Any]]) -> OfferedTools:
    """The tools of a request. Raises InvalidRequest naming the one at fault."""
    functions, places, left_out, ignored = [], [], set(), []
    for index, entry in enumerate(given):
        where, kind = f"tools[{index}]", entry.get("type")
        if isinstance(kind, str) and _SERVER_TYPE.fullmatch(kind):
            left_out.add(str(entry.get("name", kind)))
            ignored.append(f"{where}.{kind}")
            continue
        if kind not in (None, "custom"):
            raise InvalidRequest(
                f"{shortened(str(kind))!r} is not supported; leave type out and send name and input_schema",
                param=f"{where}.type",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        tool = _client_tool(entry, where)
        ignored += [f"{where}.{name}" for name in unknown_names(entry, ClientTool)]
        functions.append(FunctionTool(FunctionDefinition(tool.name, tool.description, tool.input_schema, tool.strict)))
        places.append(index)
    return OfferedTools(tuple(functions), tuple(places), frozenset(left_out), tuple(ignored))


def _client_tool(entry: Mapping[str, Any], where: str) -> ClientTool:
    try:
        return convert(entry, ClientTool)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{where}.{error.message}", param=f"{where}.{error.param}" if error.param else where, code=error.code
        ) from None
