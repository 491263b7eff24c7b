"""Converts the tools of a response request to chat tools: flattens namespaces, leaves out hosted tools."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import msgspec

from motet.api.responses.requests import AnyResponseRequest, FlatCustomTool, FlatGrammarInput, FlatTool, NamespaceTool
from motet.api.schema.chat_tools import (
    CustomDefinition,
    CustomTool,
    FunctionDefinition,
    FunctionTool,
    Grammar,
    GrammarInput,
    TextInput,
)
from motet.core import error_codes
from motet.core.errors import InvalidRequest

MAX_FLAT_TOOLS = 512
"""Includes tools in namespaces."""

MAX_TOOL_NAME = 64

_HOSTED = re.compile(
    r"(?:web_search|web_search_preview|file_search|code_interpreter|image_generation|computer|computer_use"
    r"|computer_use_preview|mcp|local_shell|shell|apply_patch|tool_search)(?:_\d{4}_\d\d_\d\d)?"
)
_FLAT = {"function": "{place}.parameters", "custom": "{place}.format.definition"}
_CHAT_PLACE = re.compile(r"tools\[(\d+)\]\.(function|custom)\..*")
_FORMS = (
    'tool_choice must be "none", "auto", "required", {"type": "function", "name": …}, {"type": "custom", "name": …} or '
    '{"type": "allowed_tools", "mode": "auto" or "required", "tools": […]}'
)


def is_hosted(tool: Any) -> TypeGuard[dict[str, Any]]:
    """Whether it is one of the tools that OpenAI runs itself."""
    kind = tool.get("type") if isinstance(tool, dict) else None
    return isinstance(kind, str) and _HOSTED.fullmatch(kind) is not None


def refuse_hosted_choice(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest if `tool_choice` requires a hosted tool, or a call while all tools are hosted."""
    choice, tools = body.get("tool_choice"), body.get("tools")
    if is_hosted(choice):
        hosted = str(choice["type"])
    elif choice == "required" and isinstance(tools, list) and tools and all(map(is_hosted, tools)):
        hosted = str(tools[0]["type"])
    else:
        return
    raise InvalidRequest(
        f"tool_choice requires {hosted}, a hosted tool, which is not offered here; set tool_choice to auto, or "
        "name a function",
        param="tool_choice",
        code=error_codes.UNSUPPORTED_VALUE,
    )


def without_hosted(body: dict[str, Any]) -> dict[str, Any]:
    """The request without hosted tools; the others keep their indexes. Raises InvalidRequest for unknown types."""
    return (
        {**body, "tools": _without_hosted_tools(body["tools"], "tools")}
        if isinstance(body.get("tools"), list)
        else body
    )


def _without_hosted_tools(tools: list[object], where: str) -> list[object]:
    kinds = ("function", "custom") if "." in where else ("function", "custom", "namespace")
    others: list[object] = []
    for index, tool in enumerate(tools):
        kind = tool.get("type") if isinstance(tool, dict) else None
        if is_hosted(tool):
            others.append(None)
        elif isinstance(kind, str) and kind not in kinds:
            raise InvalidRequest(
                f"the type {kind[:64]!r} is not supported; use {', '.join(kinds)}",
                param=f"{where}[{index}].type",
                code=error_codes.UNSUPPORTED_VALUE,
            )
        elif isinstance(tool, dict) and isinstance(tool.get("tools"), list):
            others.append({**tool, "tools": _without_hosted_tools(tool["tools"], f"{where}[{index}].tools")})
        else:
            others.append(tool)
    return others


def hosted_names(body: Mapping[str, Any]) -> Iterator[str]:
    """The paths of the hosted tools in the request, each with its type appended."""
    tools = body.get("tools")
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        if is_hosted(tool):
            yield f"tools[{index}].{tool['type']}"
        elif isinstance(tool, dict):
            yield from (f"tools[{index}].{name}" for name in hosted_names(tool))


@dataclass
class FlatTools:
    """The tools of the chat request; `places` are their paths in the response request."""

    tools: list[FunctionTool | CustomTool] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    origins: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    """The flat name to the namespace and the name in it."""

    @classmethod
    def of(cls, request: AnyResponseRequest) -> FlatTools:
        """The request's tools. Raises InvalidRequest if there are too many."""
        flat = cls()
        top = [tool for tool in request.tools or () if isinstance(tool, FlatTool | FlatCustomTool)]
        taken = {tool.name for tool in top}
        for index, tool in enumerate(request.tools or ()):
            if isinstance(tool, NamespaceTool):
                for inner_index, inner in enumerate(tool.tools):
                    if inner is not None:
                        flat._add(inner, f"tools[{index}].tools[{inner_index}]", tool.name, taken)
            elif tool is not None:
                flat._add(tool, f"tools[{index}]", None, taken)
        if len(flat.tools) > MAX_FLAT_TOOLS:
            raise InvalidRequest(
                f"there are {len(flat.tools)} tools, those in namespaces included; the maximum is {MAX_FLAT_TOOLS}",
                param="tools",
            )
        return flat

    def _add(self, tool: FlatTool | FlatCustomTool, place: str, namespace: str | None, taken: set[str]) -> None:
        name = tool.name if namespace is None else _flat_name(namespace, tool.name, taken)
        if name in self.origins or (namespace is not None and (namespace, tool.name) in self.origins.values()):
            raise InvalidRequest(f"two tools have the name {tool.name!r}", param="tools")
        taken.add(name)
        self.origins[name] = (namespace, tool.name)
        self.places.append(place)
        if isinstance(tool, FlatCustomTool):
            form = tool.format
            grammar = (
                GrammarInput(Grammar(form.syntax, form.definition)) if isinstance(form, FlatGrammarInput) else None
            )
            self.tools.append(CustomTool(CustomDefinition(name, tool.description, grammar or TextInput())))
        else:
            self.tools.append(FunctionTool(FunctionDefinition(name, tool.description, tool.parameters, tool.strict)))

    def name_of(self, namespace: str | None, name: str) -> str:
        """The flat name of the tool of an earlier call, also if the request no longer has the tool."""
        if namespace is None:
            return name
        names = (flat for flat, origin in self.origins.items() if origin == (namespace, name))
        return next(names, _flat_name(namespace, name, ()))

    def origin(self, flat: str) -> tuple[str | None, str]:
        """The namespace and the name of a tool that the model has called."""
        return self.origins.get(flat, (None, flat))

    def field(self, param: str) -> str:
        """The path in the response request of a field of one of the chat's tools."""
        match = _CHAT_PLACE.fullmatch(param)
        return _FLAT[match[2]].format(place=self.places[int(match[1])]) if match else param

    def choice(self, choice: Any) -> Any:
        """`tool_choice` in chat's nested form. Raises InvalidRequest."""
        if not isinstance(choice, dict):
            return choice
        match choice:
            case {"type": "function" | "custom"}:
                return self._chosen(choice, "tool_choice")
            case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": list(tools)}:
                offered = [(f"tool_choice.tools[{n}]", tool) for n, tool in enumerate(tools) if not is_hosted(tool)]
                nested = [self._chosen(tool, where) for where, tool in offered]
                return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": nested}}
        raise InvalidRequest(_FORMS, param="tool_choice")

    def _chosen(self, choice: object, where: str) -> dict[str, Any]:
        match choice:
            case {"type": "function" | "custom" as kind, "name": str(name), "namespace": str(namespace)}:
                return {"type": kind, kind: {"name": self.name_of(namespace, name)}}
            case {"type": "function" | "custom" as kind, "name": str(name)}:
                inner = [flat for flat, origin in self.origins.items() if origin[1] == name and origin[0] is not None]
                flat = inner[0] if name not in self.origins and len(inner) == 1 else name
                return {"type": kind, kind: {"name": flat}}
        forms = '{"type": "function", "name": …} or {"type": "custom", "name": …}'
        raise InvalidRequest(f"{where} must be {forms}", param=where)


def _flat_name(namespace: str, name: str, taken: set[str] | tuple[()]) -> str:
    """A valid function name for the tool, the same each time."""
    joined = f"{namespace}__{name}"
    safe = re.sub(r"[^a-zA-Z0-9_.-]", "_", joined)
    if safe == joined and len(safe) <= MAX_TOOL_NAME and safe not in taken:
        return safe
    digest = hashlib.sha256(f"{namespace}\0{name}".encode()).hexdigest()[:8]
    return f"{safe[: MAX_TOOL_NAME - 9]}_{digest}"


def described(tool: msgspec.Struct) -> dict[str, Any]:
    """A tool as the response repeats it."""
    fields: dict[str, Any] = msgspec.to_builtins(tool)
    match tool:
        case FlatTool():
            return {**fields, "parameters": fields["parameters"] or {}, "strict": bool(fields["strict"])}
        case FlatCustomTool():
            return {**fields, "format": fields["format"] or {"type": "text"}}
        case NamespaceTool():
            return {**fields, "tools": [described(inner) for inner in tool.tools if inner is not None]}
    return fields
