"""From messages or `prompt` to token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from motet.api.adapters import ServedAdapter
from motet.api.schemas import MAX_CHOICES, ChatRequest, CompletionRequest, Message
from motet.api.services import Services
from motet.core.errors import ContextExceeded, InvalidRequest
from motet.core.models import ModelInfo
from motet.core.templates import ChatTemplate, TemplateContext

# Tokenising more characters than this is worth a thread: the event loop goes on with other requests.
LONG_TEXT = 1024


async def chat_prompt(services: Services, request: ChatRequest, adapter: ServedAdapter | None) -> tuple[int, ...]:
    """The conversation as the chat template writes it. Raises InvalidRequest if there is no template."""
    context = services.model().max_context
    if len(request.messages) > context:
        raise ContextExceeded(
            f"the context holds {context} tokens and there are {len(request.messages)} messages; send fewer",
            param="messages",
        )
    template = await _find_template(services, adapter)
    prompt = await services.renderer.render(template, template_variables(services, request, template))
    _refuse_hopeless(services, prompt, "messages")
    [tokens] = await _encode(services, [prompt], add_special_tokens=False)
    if not tokens:
        raise InvalidRequest("the chat template made an empty prompt of these messages", param="messages")
    return tuple(tokens)


def template_variables(services: Services, request: ChatRequest, template: ChatTemplate) -> dict[str, object]:
    """What the template sees; the names are transformers'."""
    return {
        "messages": [_plain(message, index, template) for index, message in enumerate(request.messages)],
        "add_generation_prompt": True,
        **services.text.special_tokens,
    }


async def _find_template(services: Services, adapter: ServedAdapter | None) -> ChatTemplate:
    context = TemplateContext(
        base_directory=Path(services.model().directory),
        adapter_directory=adapter.directory if adapter else None,
        adapter_source=adapter.ref.source if adapter else None,
        adapter_id=adapter.ref.id if adapter else None,
    )
    finders = tuple(services.plugins.chat_templates.items.values())

    def find() -> ChatTemplate | None:
        return next((found for finder in finders if (found := finder.find(context)) is not None), None)

    template = await asyncio.to_thread(find)
    if template is None:
        raise InvalidRequest(
            "neither the adapter nor the base model has a chat template: use /v1/completions, or add "
            "chat_template.jinja to the adapter's or the model's directory",
            param="messages",
            code="no_chat_template",
        )
    return template


def _plain(message: Message, index: int, template: ChatTemplate) -> dict[str, Any]:
    """A message as templates expect it: text as one string, a call's arguments as an object."""
    # `developer` is OpenAI's newer word for `system`; few templates know it.
    role = "system" if message.role == "developer" and "developer" not in template.text else message.role
    content = message.content
    if not isinstance(content, str):
        content = "".join(part.text for part in content or ())
    plain: dict[str, Any] = {"role": role, "content": content}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        if "tool_calls" not in template.text:
            raise InvalidRequest(
                f"the chat template ({template.origin}'s) cannot write tool calls",
                param=f"messages[{index}].tool_calls",
                code="unsupported_parameter",
            )
        plain["tool_calls"] = _calls(message, f"messages[{index}].tool_calls")
    return plain


def _calls(message: Message, where: str) -> list[dict[str, Any]]:
    calls = []
    for index, call in enumerate(message.tool_calls or ()):
        try:
            arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest(
                "arguments must be a JSON object, as text", param=f"{where}[{index}].function.arguments"
            ) from None
        function = {"name": call.function.name, "arguments": arguments}
        calls.append({"id": call.id, "type": call.type, "function": function})
    return calls


async def completion_prompts(
    services: Services, request: CompletionRequest, model: ModelInfo
) -> tuple[tuple[int, ...], ...]:
    """The token ids of every prompt. Raises InvalidRequest on an empty, mixed or too long list."""
    prompts = _as_list(request.prompt)
    if len(prompts) * (request.n or 1) > MAX_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts of {request.n or 1} choices each are over the limit of {MAX_CHOICES} choices",
            param="prompt",
        )
    where = ["prompt"] if len(prompts) == 1 else [f"prompt[{index}]" for index in range(len(prompts))]
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]  # all of them, or none
    for text, param in zip(texts, where, strict=False):
        _refuse_hopeless(services, text, param)
    ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
    tokens = await _encode(services, texts, add_special_tokens=True) if texts else ids
    vocab_size = min(model.vocab_size, services.text.vocab_size)
    for prompt, param in zip(tokens, where, strict=True):
        if not prompt:
            raise InvalidRequest("the prompt is empty; it needs at least one token", param=param)
        if ids and max(prompt) >= vocab_size:
            raise InvalidRequest(f"{max(prompt)} is not the id of a token (0 to {vocab_size - 1})", param=param)
    return tuple(map(tuple, tokens))


def _as_list(prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
    """`prompt` as a list of texts or of lists of ids."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("the list of prompts is empty", param="prompt")
    kinds = {type(item) for item in prompt}
    if len(kinds) > 1:
        raise InvalidRequest("texts, ids and lists of ids cannot be mixed", param="prompt", code="invalid_type")
    if kinds == {int}:
        return [[item for item in prompt if isinstance(item, int)]]
    return [item for item in prompt if not isinstance(item, int)]


def _refuse_hopeless(services: Services, text: str, param: str) -> None:
    """Raise ContextExceeded for a text that is too long even if every token in it is the longest that there is."""
    context = services.model().max_context
    if not services.text.may_fit(text, context):
        raise ContextExceeded(
            f"the context holds {context} tokens and the prompt's {len(text)} characters are more; shorten it",
            param=param,
        )


async def _encode(services: Services, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
    if sum(map(len, texts)) < LONG_TEXT:
        return services.text.encode_batch(texts, add_special_tokens=add_special_tokens)
    return await asyncio.to_thread(services.text.encode_batch, texts, add_special_tokens=add_special_tokens)
