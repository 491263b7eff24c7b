"""Renders conversations: fills in what the chat template reads, and tokenises the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from motet.api.generating.context_limit import prompt_too_long
from motet.api.generating.prompts import encode, refuse_too_long
from motet.api.generating.tools import ToolUse, tool_parser
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import ChatRequest
from motet.api.services import Services
from motet.core import error_codes
from motet.core.chat_template import ChatTemplate
from motet.core.errors import InvalidRequest
from motet.core.tool_parser import ToolParser

CONTINUATION_MARK = "\ue000the answer goes on here\ue001 "
"""Marks in a rendered prompt where the last message ends; of private-use characters."""

RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")


async def render_chat(
    services: Services, request: ChatRequest, template: ChatTemplate, tools: ToolUse | None
) -> tuple[int, ...]:
    """The conversation's token ids, as the chat template writes it. Raises InvalidRequest, ContextExceeded."""
    context = services.model().max_context
    if len(request.messages) > context:
        size = f"more than {context} tokens (there are {len(request.messages)} messages)"
        raise prompt_too_long(context, size, "messages")
    variables = template_variables(services, request, template, tools)
    if request.continue_final_message:
        prompt = _cut_at_mark(await services.renderer.render(template, _marked(variables), services.flow))
    else:
        prompt = await services.renderer.render(template, variables, services.flow)
    refuse_too_long(services, prompt, "messages", truncated=request.truncate_prompt_tokens is not None)
    [tokens] = await encode(services, [prompt], add_special_tokens=False)
    if not tokens:
        raise InvalidRequest("the chat template rendered these messages as an empty prompt", param="messages")
    return tuple(tokens)


def template_variables(
    services: Services, request: ChatRequest, template: ChatTemplate, tools: ToolUse | None = None
) -> dict[str, object]:
    """The template's variables; the names are transformers'."""
    parser = None if _supports_tools(template) else tool_parser(services, template)
    messages = [_template_message(message, template, parser) for message in request.messages]
    variables: dict[str, object] = {**_template_kwargs(request), **_hints(request, template)}
    if tools is not None and "tools" in template.text:
        variables["tools"] = tools.for_template()
    elif tools is not None:
        messages = _with_instructions(messages, tools.parser.instructions(tools.tools))
    if request.documents:
        if "documents" not in template.text:
            raise _unsupported("documents", template)
        variables["documents"] = request.documents
    requested = request.add_generation_prompt
    variables["add_generation_prompt"] = not request.continue_final_message if requested is None else requested
    return {**services.tokenizer.special_tokens, **variables, "messages": messages}


def _supports_tools(template: ChatTemplate) -> bool:
    return "tool_calls" in template.text


def _template_kwargs(request: ChatRequest) -> Mapping[str, object]:
    """The variables in `chat_template_kwargs`. Raises InvalidRequest for a reserved name."""
    for name in request.chat_template_kwargs or {}:
        if name in RESERVED:
            raise InvalidRequest(
                f"chat_template_kwargs cannot set {name}; it has its own field, or comes from the tokenizer",
                param=f"chat_template_kwargs.{name}",
            )
    return request.chat_template_kwargs or {}


def _hints(request: ChatRequest, template: ChatTemplate) -> dict[str, object]:
    """`effort` and `verbosity` under the names that the template reads."""
    hints: dict[str, object] = {}
    if (effort := request.effort) is not None:
        hints = {"reasoning_effort": effort, "enable_thinking": effort != "none"}
    if request.verbosity is not None:
        hints["verbosity"] = request.verbosity
    return {name: value for name, value in hints.items() if name in template.text}


def ignored_hints(request: ChatRequest, template: ChatTemplate) -> tuple[str, ...]:
    """The fields with a hint that the template does not read.

    Clients send such hints by default, so they are not errors. Default values are not listed.
    """
    read = _hints(request, template)
    ignored = []
    if request.effort not in (None, "none") and not {"reasoning_effort", "enable_thinking"} & read.keys():
        ignored.append("reasoning_effort" if request.reasoning_effort else "reasoning.effort")
    if request.verbosity not in (None, "medium") and "verbosity" not in read:
        ignored.append("verbosity")
    return tuple(ignored)


def _unsupported(field: str, template: ChatTemplate) -> InvalidRequest:
    return InvalidRequest(
        f"the chat template ({template.origin}'s) does not read {field}; leave it out",
        param=field,
        code=error_codes.UNSUPPORTED_PARAMETER,
    )


def _with_instructions(messages: list[dict[str, Any]], instructions: str) -> list[dict[str, Any]]:
    """The messages with `instructions` added to the system message; a new one if there is none."""
    if messages and messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{instructions}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]


def _template_message(message: Message, template: ChatTemplate, parser: ToolParser | None) -> dict[str, Any]:
    """A message as templates expect it: text as one string, a call's arguments as an object.

    With `parser`, for a template without tool support, calls and their results are written as text.
    """
    # `developer` is OpenAI's newer name of `system`; few templates support it.
    role = "system" if message.role == "developer" and "developer" not in template.text else message.role
    plain: dict[str, Any] = {"role": role, "content": message.text()}
    calls = _calls(message)
    if parser is not None and (calls or role in ("tool", "function")):
        written = [_call_text(parser, call["function"]) for call in calls]
        if calls:
            plain["content"] = "\n".join(filter(None, (plain["content"], *written)))
        else:
            plain = {"role": "user", "content": parser.result_text(plain["content"])}
        return plain
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if calls:
        plain["tool_calls"] = calls
    return plain


def _call_text(parser: ToolParser, function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    return parser.call_text(function["name"], {"malformed": arguments} if isinstance(arguments, str) else arguments)


def _calls(message: Message) -> list[dict[str, Any]]:
    calls = []
    for call in message.tool_calls or ():
        called = call.as_function()
        function = {"name": called.name, "arguments": _arguments(called.arguments)}
        calls.append({"id": call.id, "type": "function", "function": function})
    return calls


def _arguments(text: str) -> dict[str, Any] | str:
    """A call's arguments as an object, or as text if they were cut off."""
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return text


def _marked(variables: dict[str, object]) -> dict[str, object]:
    """The variables with CONTINUATION_MARK at the end of the last message's text."""
    *before, last = cast(list[dict[str, Any]], variables["messages"])
    if not last["content"].strip():
        raise InvalidRequest("the last message has no text to continue", param="continue_final_message")
    return {**variables, "messages": [*before, {**last, "content": last["content"] + CONTINUATION_MARK}]}


def _cut_at_mark(prompt: str) -> str:
    """The prompt up to the end of its last message's text, cut as transformers cuts it."""
    end = prompt.rfind(CONTINUATION_MARK.rstrip())
    if end < 0:
        raise InvalidRequest(
            "the last message cannot be continued: the chat template changes its text",
            param="continue_final_message",
        )
    # The mark ends with a space: a template that strips it would strip the text's trailing space, too.
    return prompt[:end] if prompt.startswith(CONTINUATION_MARK, end) else prompt[:end].rstrip()
