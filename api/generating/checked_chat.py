"""Checks a chat request: what every request is checked for, its chat template, its tools and their grammars."""

from __future__ import annotations

from dataclasses import dataclass, replace

from motet.api.generating.chat_template_choice import find_template
from motet.api.generating.checked_request import CheckedRequest, check_request
from motet.api.generating.tools import ToolUse, tool_name, tool_use
from motet.api.http.caller import Caller
from motet.api.schema.chat_request import ChatRequest
from motet.api.services import Services
from motet.core.chat_template import ChatTemplate
from motet.core.errors import InvalidRequest
from motet.core.output_format import GrammarSpec

PARAMETERS, DEFINITION = "function.parameters", "custom.format.grammar.definition"
"""The field of a tool that holds the grammar of its calls."""


@dataclass(frozen=True)
class CheckedChat(CheckedRequest):
    """A checked chat request. Nothing in it but `request` depends on the messages."""

    request: ChatRequest
    template: ChatTemplate
    tools: ToolUse | None


async def check_chat(services: Services, request: ChatRequest, caller: Caller) -> CheckedChat:
    """Check everything that does not depend on the messages. Raises MotetError."""
    checked = await check_request(services, request, caller)
    template = await find_template(checked.services, checked.adapter)
    tools = tool_use(checked.services, request, template)
    if tools is not None:
        checked = replace(checked, grammar=await _grammar(checked, request, tools))
    return CheckedChat(
        request=request,
        services=checked.services,
        model=checked.model,
        params=checked.params,
        grammar=checked.grammar,
        adapter=checked.adapter,
        caller=caller,
        template=template,
        tools=tools,
    )


async def _grammar(checked: CheckedRequest, request: ChatRequest, tools: ToolUse) -> GrammarSpec | None:
    """The grammar of an answer that may call `tools`. Raises InvalidRequest naming the tool at fault."""
    services = checked.services
    await _check_inputs(services, request, tools)
    grammar = tools.grammar(services, checked.grammar)
    if grammar is None:
        return None
    try:
        await services.grammars.check(grammar, "tools", owner=services.flow)
    except InvalidRequest:
        for index, tool in enumerate(request.tools or ()):
            if (alone := tools.grammar_of(services, tool_name(tool))) is not None:
                await services.grammars.check(alone, f"tools[{index}].{PARAMETERS}", owner=services.flow)
        raise
    return grammar


async def _check_inputs(services: Services, request: ChatRequest, tools: ToolUse) -> None:
    """Raise InvalidRequest naming a custom tool whose grammar is wrong by itself."""
    grammars = {tool.name: tool.raw_input for tool in tools.tools}
    for index, tool in enumerate(request.tools or ()):
        if (grammar := grammars.get(tool_name(tool))) is not None:
            try:
                await services.grammars.check(grammar, f"tools[{index}].{DEFINITION}", owner=services.flow)
            except InvalidRequest as error:
                error.message = f"the tool {tool_name(tool)!r}: {error.message}"
                raise
