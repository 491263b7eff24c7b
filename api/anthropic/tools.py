"""Translates Anthropic's tools and tool_choice into a chat request's; omits tools that Anthropic runs."""

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

# Anthropic's own tools have a date in their type (web_search_20250305, bash_20250124), or are an MCP server.
_SERVER_TYPE = re.compile(r"[a-z0-9_]+_\d{8}|mcp_toolset")


@dataclass(frozen=True)
class OfferedTools:
    """The tools of a request.

    `indexes` holds the index of each function in the caller's list, `omitted` the names of the tools that Anthropic
    runs, and `ignored` the paths of everything that has no effect.
    """

    functions: tuple[FunctionTool, ...]
    indexes: tuple[int, ...]
    omitted: frozenset[str]
    ignored: tuple[str, ...]

    def choice(self, requested: ToolChoice | None) -> Any:
        """The chat request's tool_choice. Raises InvalidRequest."""
        if requested is not None and requested.type == "any" and self.omitted and not self.functions:
            raise InvalidRequest(
                "tool_choice requires a call, but all tools are run by Anthropic; they are not available here",
                param="tool_choice",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        if requested is None or requested.type != "tool":
            return None if requested is None else {"any": "required"}.get(requested.type, requested.type)
        if requested.name is None:
            raise InvalidRequest(
                "tool_choice.name is missing", param="tool_choice.name", code=error_codes.MISSING_REQUIRED_PARAMETER
            )
        if requested.name in self.omitted:
            raise InvalidRequest(
                f"tool_choice names {shortened(requested.name)!r}, which Anthropic runs; it is not available here",
                param="tool_choice",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        return {"type": "function", "function": {"name": requested.name}}


def offered_tools(tools: Sequence[Mapping[str, Any]]) -> OfferedTools:
    """The tools of a request. Raises InvalidRequest naming the invalid one."""
    functions, indexes, omitted, ignored = [], [], set(), []
    for index, entry in enumerate(tools):
        path, kind = f"tools[{index}]", entry.get("type")
        if isinstance(kind, str) and _SERVER_TYPE.fullmatch(kind):
            omitted.add(str(entry.get("name", kind)))
            ignored.append(f"{path}.{kind}")
            continue
        if kind not in (None, "custom"):
            raise InvalidRequest(
                f"{shortened(str(kind))!r} is not supported; leave type out and send name and input_schema",
                param=f"{path}.type",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        tool = _client_tool(entry, path)
        ignored += [f"{path}.{name}" for name in unknown_names(entry, ClientTool)]
        functions.append(FunctionTool(FunctionDefinition(tool.name, tool.description, tool.input_schema, tool.strict)))
        indexes.append(index)
    return OfferedTools(tuple(functions), tuple(indexes), frozenset(omitted), tuple(ignored))


def _client_tool(entry: Mapping[str, Any], path: str) -> ClientTool:
    try:
        return convert(entry, ClientTool)
    except InvalidRequest as error:
        raise InvalidRequest(
            f"{path}.{error.message}", param=f"{path}.{error.param}" if error.param else path, code=error.code
        ) from None
