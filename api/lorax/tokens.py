"""POST /tokenize, in LoRAX's shape (`inputs`) or vLLM's (`prompt` or `messages`), and vLLM's /detokenize."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from quart import Blueprint, Response, g

from motet.api.adapters.registry import ServedAdapter
from motet.api.generating.adapter_choice import resolve_adapter
from motet.api.generating.chat_prompts import render_chat
from motet.api.generating.chat_template_choice import find_template
from motet.api.generating.logprobs import readable
from motet.api.generating.prompts import encode, refuse_too_long
from motet.api.generating.request_params import truncated
from motet.api.generating.tools import tool_use
from motet.api.http.caller import current_caller
from motet.api.http.errors import error_response
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.lorax.errors import lorax_error_response
from motet.api.lorax.objects import LoraxError
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import MAX_TEMPLATE_VARIABLES, ChatRequest
from motet.api.schema.chat_tools import MAX_TOOLS, CustomTool, FunctionTool
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.schema.parsing import Parsed, check_adapters, convert, parse_chat, unknown_fields
from motet.api.schema.request_fields import TokenId
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest, MotetError

MAX_CHARACTERS = 1 << 19
MAX_TOKENS = 1 << 17


class TokenizeRequest(AdapterChoice, frozen=True, kw_only=True):
    """Body of POST /tokenize: `inputs`, or `prompt`, or `messages`."""

    model: Annotated[str, Meta(max_length=1024, description="The model; its chat template renders messages.")] = ""
    inputs: Annotated[str | None, Meta(description="LoRAX's name of the text; the answer is LoRAX's list.")] = None
    prompt: Annotated[str | None, Meta(description="vLLM's name of the text.", examples=["The sea is wide."])] = None
    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1)] | None,
        Meta(description="A conversation, whose prompt is tokenised."),
    ] = None
    add_special_tokens: Annotated[
        bool | None,
        Meta(
            description="Add the special tokens that prompts begin with; default: true. Not for "
            "messages, whose template adds them."
        ),
    ] = None
    add_generation_prompt: Annotated[bool | None, Meta(description="For messages; default: true.")] = None
    continue_final_message: Annotated[bool | None, Meta(description="For messages; default: false.")] = None
    chat_template_kwargs: Annotated[
        Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None, Meta(description="For messages.")
    ] = None
    tools: Annotated[
        Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description="For messages: the tools that their prompt lists."),
    ] = None
    return_token_strs: Annotated[bool | None, Meta(description="Include each token's text.")] = None


KINDS = ("inputs", "prompt", "messages")
APPLIES_TO = {
    **dict.fromkeys(
        ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"), ("messages",)
    ),
    "return_token_strs": ("prompt", "messages"),
}
"""Field -> the kinds of request in which it has an effect; in others it is ignored."""

CHAT_FIELDS = tuple(name for name in TokenizeRequest.__struct_fields__ if name in ChatRequest.__struct_fields__)


class TokenSpan(msgspec.Struct, frozen=True):
    """A token and its characters in the text."""

    id: int
    text: str
    start: int
    stop: int


class TokenList(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a prompt, in vLLM's shape."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | UnsetType | None = UNSET


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS, description="Token ids.", examples=[[504, 5107]])]
    model: Annotated[
        Annotated[str, Meta(max_length=1024)] | None,
        Meta(description="The model; an adapter may have tokens of its own."),
    ] = None


class DetokenizedText(msgspec.Struct, frozen=True):
    """The text of tokens, including special ones."""

    prompt: str


_FAILURE = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ErrorBody", "LoraxError")]}
_SPANS = {"type": "array", "items": {"$ref": "#/components/schemas/TokenSpan"}}

OPERATIONS = (
    Operation(
        "post",
        "/tokenize",
        "The tokens of a text or a conversation",
        "tokens",
        {"anyOf": [{"$ref": "#/components/schemas/TokenList"}, _SPANS]},
        body=TokenizeRequest,
        example={"model": "", "prompt": "The sea is wide."},
        statuses=(*GENERATION_STATUSES, 424),
        error_response=_FAILURE,
        parameters=(TOKEN_HEADER,),
        nested_structs=(TokenList, TokenSpan, LoraxError),
    ),
    Operation(
        "post",
        "/detokenize",
        "The text of tokens",
        "tokens",
        DetokenizedText,
        body=DetokenizeRequest,
        example={"model": "", "tokens": [504, 5107]},
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("tokens", __name__)

    @blueprint.errorhandler(MotetError)
    async def on_error(error: MotetError) -> Response:
        info = error.info()
        return lorax_error_response(info, names={}) if g.get("lorax") else error_response(info)

    @blueprint.post("/tokenize")
    async def tokenize() -> Response:
        async with services.drain.interruptible():
            body = await read_body(_parse)
            answer = await (_spans(services, body) if body.inputs is not None else _token_list(services, body))
            return json_response(answer)

    @blueprint.post("/detokenize")
    async def detokenize() -> Response:
        body = await read_body(_parse_tokens)
        adapter = await resolve_adapter(services, AdapterChoice(model=body.model or ""), current_caller())
        bound = services.for_request(adapter, current_caller())
        size = bound.tokenizer.vocab_size
        for index, token in enumerate(body.tokens):
            if token >= size:
                raise InvalidRequest(f"{token} is not a token id (0 to {size - 1})", param=f"tokens[{index}]")
        decode = partial(bound.tokenizer.decode, body.tokens, skip_special_tokens=False)
        text = await services.tokenising.run(bound.flow, len(body.tokens), decode)
        answer = DetokenizedText(text)
        return json_response(answer)

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[TokenizeRequest]:
    """The body of /tokenize. Raises InvalidRequest for a field that would change the count but is not supported."""
    kinds = [name for name in KINDS if body.get(name) is not None]
    g.lorax = kinds == ["inputs"]
    if len(kinds) != 1:
        raise InvalidRequest(
            "send exactly one of prompt, messages and inputs",
            param="prompt",
            code=error_codes.MISSING_REQUIRED_PARAMETER,
        )
    [kind] = kinds
    request = convert(body, TokenizeRequest)
    check_adapters(request)
    if request.messages is not None and request.add_special_tokens:
        raise InvalidRequest(
            "add_special_tokens has no effect on messages, whose chat template adds them; leave it out",
            param="add_special_tokens",
        )
    ignored = tuple(
        name
        for name in body
        if name not in TokenizeRequest.__struct_fields__ or (name in APPLIES_TO and kind not in APPLIES_TO[name])
    )
    if request.messages is None:
        return Parsed(request, ignored)
    chat = {name: value for name, value in body.items() if name in CHAT_FIELDS}
    return Parsed(request, (*ignored, *parse_chat({"model": "", **chat}).ignored))


def _parse_tokens(body: dict[str, Any]) -> Parsed[DetokenizeRequest]:
    return Parsed(convert(body, DetokenizeRequest), unknown_fields(body, DetokenizeRequest, {}))


async def _spans(services: Services, body: TokenizeRequest) -> list[TokenSpan]:
    """The tokens in LoRAX's shape; start and stop count characters."""
    text, context = body.inputs or "", services.model().max_context
    _refuse_long(services, text, "inputs", bounded=body.truncate_prompt_tokens is None)
    caller = current_caller()
    services = services.for_request(await resolve_adapter(services, body, caller), caller)

    def spans() -> list[TokenSpan]:
        all_spans = services.tokenizer.spans(text, add_special_tokens=body.add_special_tokens is not False)
        count = len(truncated(body, tuple(id for id, _, _ in all_spans), context))
        return [TokenSpan(id, text[start:stop], start, stop) for id, start, stop in all_spans[len(all_spans) - count :]]

    return await services.tokenising.run(services.flow, len(text), spans)


async def _token_list(services: Services, body: TokenizeRequest) -> TokenList:
    """The tokens in vLLM's shape."""
    context = services.model().max_context
    adapter = await resolve_adapter(services, body, current_caller())
    services = services.for_request(adapter, current_caller())
    if body.prompt is None:
        tokens = await _rendered(services, body, adapter)
    else:
        _refuse_long(services, body.prompt, "prompt", bounded=body.truncate_prompt_tokens is None)
        [ids] = await encode(services, [body.prompt], add_special_tokens=body.add_special_tokens is not False)
        tokens = tuple(ids)
    tokens = truncated(body, tokens, context)
    return TokenList(
        count=len(tokens),
        max_model_len=context,
        tokens=tokens,
        token_strs=_token_texts(services, tokens) if body.return_token_strs else None,
    )


def _token_texts(services: Services, tokens: Sequence[int]) -> list[str]:
    texts = {id: readable(services.tokenizer.token_bytes(id)) for id in set(tokens)}
    return [texts[id] for id in tokens]


def _refuse_long(services: Services, text: str, param: str, bounded: bool) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"{param} has {len(text)} characters; the maximum is {MAX_CHARACTERS}", param=param)
    if bounded:
        refuse_too_long(services, text, param)


async def _rendered(services: Services, body: TokenizeRequest, adapter: ServedAdapter | None) -> tuple[int, ...]:
    chat = ChatRequest(**{name: getattr(body, name) for name in CHAT_FIELDS})
    template = await find_template(services, adapter)
    return await render_chat(services, chat, template, tool_use(services, chat, template))
