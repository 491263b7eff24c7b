"""A chat request's tools: which may be called, how templates list them, which grammar the answer must follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from motet.api.generating.custom_tools import custom_tool
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.chat_tools import CustomTool, FunctionTool, GrammarInput
from motet.api.services import Services
from motet.core.chat_template import ChatTemplate
from motet.core.errors import InvalidRequest
from motet.core.output_format import GrammarSpec, escape_for_lark
from motet.core.tool_parser import Tool, ToolParser

FALLBACK = "hermes"
NO_ARGUMENTS = msgspec.Raw(b"{}")


@dataclass(frozen=True)
class ToolUse:
    """The tools that a request offers the model. `required`: the answer must be calls; `parallel`: of any number."""

    parser: ToolParser
    tools: tuple[Tool, ...]
    required: bool
    parallel: bool
    marker_ids: frozenset[int]
    """Ids of the parser's markers that are special tokens: its reader needs to see them."""
    custom: frozenset[str] = frozenset()
    """Names of the tools whose calls have an input instead of arguments."""

    def for_template(self) -> list[dict[str, Any]]:
        """The tools as chat templates expect them."""
        return [{"type": "function", "function": _function(tool)} for tool in self.tools]

    def grammar(self, services: Services, text_grammar: GrammarSpec | None) -> GrammarSpec | None:
        """The grammar of the answer: calls, or text with the grammar `text_grammar`; None for free text.

        Raises InvalidRequest for a `text_grammar` that cannot be combined with calls.
        """
        special = self._special(services)
        if self.required:
            return self.parser.grammar(self.tools, self.parallel, special)
        if text_grammar is not None:
            return _calls_or_text(self.parser.grammar(self.tools, self.parallel, special), text_grammar)
        strict = any(tool.strict for tool in self.tools)
        return self.parser.text_or_calls(self.tools, special) if strict else None

    def grammar_of(self, services: Services, name: str) -> GrammarSpec | None:
        """The grammar of one call of the function `name`; None if that may not be called."""
        named = [tool for tool in self.tools if tool.name == name]
        return self.parser.grammar(named, False, self._special(services)) if named else None

    def _special(self, services: Services) -> frozenset[str]:
        tokenizer = services.tokenizer
        ids = {marker: tokenizer.special_id(marker) for marker in self.parser.markers}
        # Grammars use the base's tokens; they write an adapter's own tokens as text.
        base = tokenizer.base
        return frozenset(marker for marker, id in ids.items() if id is not None and id == base.special_id(marker))


def _calls_or_text(calls: GrammarSpec, text: GrammarSpec) -> GrammarSpec:
    """The grammar of calls or `text`. Raises InvalidRequest for a Lark grammar of text."""
    if text.kind == "lark":
        raise InvalidRequest(
            "`grammar` and `choice` cannot be combined with tools; set tool_choice to none, or use json_schema or "
            "regex",
            param="response_format.type",
        )
    answer = f"%json {text.text}" if text.kind == "json_schema" else f"/{escape_for_lark(text.text)}/"
    rules = calls.text.replace("start:", "motet_calls:", 1)
    return GrammarSpec("lark", f"start: motet_calls | motet_answer\nmotet_answer: {answer}\n{rules}")


def _function(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description or "", "parameters": dict(tool.parameters)}


def tool_name(tool: FunctionTool | CustomTool) -> str:
    """The name that the model calls it by."""
    return tool.custom.name if isinstance(tool, CustomTool) else tool.function.name


def complete_arguments(text: str) -> msgspec.Raw:
    """A call's arguments as JSON; an empty object if they are incomplete."""
    try:
        msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return NO_ARGUMENTS
    return msgspec.Raw(text.encode())


def tool_parser(services: Services, template: ChatTemplate) -> ToolParser:
    """The parser that the settings name, else the first that claims the template, else FALLBACK."""
    parsers = services.plugins.tool_parsers.items
    if services.settings.tool_parser != "auto":
        return parsers[services.settings.tool_parser]
    return next((parser for parser in parsers.values() if parser.claims(template.text)), parsers[FALLBACK])


def tool_use(services: Services, request: ChatRequest, template: ChatTemplate) -> ToolUse | None:
    """The tools of `request`; None if it has none, or none may be called. Raises InvalidRequest."""
    required, names = _choice(request)
    tools = [_tool(tool) for tool in request.tools or ()]
    if (required or names is not None) and not tools:
        raise InvalidRequest("tool_choice requires a call, but there are no tools", param="tool_choice")
    names_in_tools = {tool.name for tool in tools}
    if len(names_in_tools) < len(tools):
        raise InvalidRequest("two tools have the same name", param="tools")
    for name in names or ():
        if name not in names_in_tools:
            raise InvalidRequest(f"tool_choice names {name[:64]!r}, which is not in tools", param="tool_choice")
    offered = tuple(tool for tool in tools if names is None or tool.name in names)
    if required and not offered:
        raise InvalidRequest(
            "tool_choice requires a call, but allows none of the tools", param="tool_choice.allowed_tools.tools"
        )
    if not offered or request.tool_choice == "none":
        return None
    parser = tool_parser(services, template)
    ids = (services.tokenizer.special_id(marker) for marker in parser.markers)
    marker_ids = frozenset(id for id in ids if id is not None)
    parallel = request.parallel_tool_calls
    if parallel is None:  # a function that tool_choice names is called once
        parallel = not (required and names is not None and len(names) == 1)
    custom = frozenset(tool.custom.name for tool in request.tools or () if isinstance(tool, CustomTool))
    return ToolUse(parser, offered, required, parallel, marker_ids, custom)


def _choice(request: ChatRequest) -> tuple[bool, Sequence[str] | None]:
    """Whether a call is required, and the names it is limited to (None: all). Raises InvalidRequest."""
    choice = request.tool_choice
    if not isinstance(choice, dict):
        return choice == "required", None
    match choice:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "custom", "custom": {"name": str(name)}}:
            return True, [name]
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)}}:
            return mode == "required", [_allowed(tool, index) for index, tool in enumerate(tools)]
    raise InvalidRequest(
        'tool_choice must be "none", "auto", "required", {"type": "function", "function": {"name": …}}, '
        '{"type": "custom", "custom": {"name": …}} or '
        '{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": […]}}',
        param="tool_choice",
    )


def _allowed(tool: object, index: int) -> str:
    match tool:
        case {"type": "function", "function": {"name": str(name)}} | {"type": "custom", "custom": {"name": str(name)}}:
            return name
    raise InvalidRequest(
        'each must be {"type": "function", "function": {"name": …}} or {"type": "custom", "custom": {"name": …}}',
        param=f"tool_choice.allowed_tools.tools[{index}]",
    )


def _tool(tool: FunctionTool | CustomTool) -> Tool:
    if isinstance(tool, CustomTool):
        custom = tool.custom
        grammar = custom.format.grammar if isinstance(custom.format, GrammarInput) else None
        syntax, definition = (grammar.syntax, grammar.definition) if grammar else (None, "")
        return custom_tool(custom.name, custom.description, syntax, definition)
    function = tool.function
    parameters: Mapping[str, Any] = function.parameters or {}
    return Tool(function.name, function.description, parameters, bool(function.strict))
