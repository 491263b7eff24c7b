"""POST /tokenize, in LoRAX's shape (`inputs`) or vLLM's (`prompt` or `messages`), and vLLM's /detokenize."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from quart import Blueprint, Response, g

from motet.api.adapters.messages import ServedAdapter
from motet.api.generating.adapter_choice import resolve_adapter
from motet.api.generating.chat_prompts import find_template, render_chat
from motet.api.generating.logprobs import readable
from motet.api.generating.prompts import encode, refuse_too_long
from motet.api.generating.sampling_params import truncated
from motet.api.generating.tools import tool_use
from motet.api.http.caller import current_caller
from motet.api.http.errors import error_response
from motet.api.http.request_body import read_body
from motet.api.lorax.errors import lorax_error_response
from motet.api.lorax.objects import LoraxError
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_messages import Message
from motet.api.schema.chat_request import MAX_TEMPLATE_VARIABLES, ChatRequest
from motet.api.schema.chat_tools import MAX_TOOLS, CustomTool, FunctionTool
from motet.api.schema.openai_objects import ENCODER
from motet.api.schema.operations import ERRORS, TOKEN, Operation
from motet.api.schema.parsing import Parsed, check_adapters, convert, parse_chat, unknown_fields
from motet.api.schema.request_fields import TokenId
from motet.api.services import Services
from motet.core import error_codes
from motet.core.errors import InvalidRequest, MotetError

MAX_CHARACTERS = 1 << 19
MAX_TOKENS = 1 << 17


class TokenizeRequest(AdapterChoice, frozen=True, kw_only=True):
    """Body of POST /tokenize: `inputs`, or `prompt`, or `messages`."""

    model: Annotated[str, Meta(max_length=1024, description="As everywhere; its chat template writes messages.")] = ""
    inputs: Annotated[str | None, Meta(description="LoRAX's name for the text; answers with its list.")] = None
    prompt: Annotated[str | None, Meta(description="vLLM's name for the text.", examples=["The sea is wide."])] = None
    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1)] | None, Meta(description="A conversation, for its prompt.")
    ] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="Begin as prompts begin; default: true. For texts: templates begin as they will.")
    ] = None
    add_generation_prompt: Annotated[bool | None, Meta(description="For messages; default: true.")] = None
    continue_final_message: Annotated[bool | None, Meta(description="For messages; default: false.")] = None
    chat_template_kwargs: Annotated[
        Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None, Meta(description="For messages.")
    ] = None
    tools: Annotated[
        Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description="For messages: what the model may call, as its prompt says."),
    ] = None
    return_token_strs: Annotated[bool | None, Meta(description="Answer with each token's text, too.")] = None


KINDS = ("inputs", "prompt", "messages")
HEEDED = {
    **dict.fromkeys(
        ("add_generation_prompt", "continue_final_message", "chat_template_kwargs", "tools"), ("messages",)
    ),
    "return_token_strs": ("prompt", "messages"),
}
"""Field to the kinds of request for which it means something; with others it is ignored."""

CHAT_FIELDS = tuple(name for name in TokenizeRequest.__struct_fields__ if name in ChatRequest.__struct_fields__)


class TokenSpan(msgspec.Struct, frozen=True):
    """A token, and the characters of the text that it stands for."""

    id: int
    text: str
    start: int
    stop: int


class TokenList(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens of a prompt, as vLLM answers."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | UnsetType | None = UNSET


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS, description="Token ids.", examples=[[504, 5107]])]
    model: Annotated[
        Annotated[str, Meta(max_length=1024)] | None,
        Meta(description="As everywhere; an adapter may have tokens of its own."),
    ] = None


class DetokenizedText(msgspec.Struct, frozen=True):
    """The text of tokens, special ones written out."""

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
        errors=(*ERRORS, 424),
        failure=_FAILURE,
        parameters=(TOKEN,),
        parts=(TokenList, TokenSpan, LoraxError),
    ),
    Operation(
        "post",
        "/detokenize",
        "The text of tokens",
        "tokens",
        DetokenizedText,
        body=DetokenizeRequest,
        example={"model": "", "tokens": [504, 5107]},
        errors=ERRORS,
        parameters=(TOKEN,),
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
            asked = await read_body(_parse)
            answer = await (_spans(services, asked) if asked.inputs is not None else _listed(services, asked))
            return Response(ENCODER.encode(answer), content_type="application/json")

    @blueprint.post("/detokenize")
    async def detokenize() -> Response:
        asked = await read_body(_parse_tokens)
        adapter = await resolve_adapter(services, AdapterChoice(model=asked.model or ""), current_caller())
        services_of = services.for_request(adapter, current_caller())
        model_text = services_of.text
        size = model_text.vocab_size
        for index, token in enumerate(asked.tokens):
            if token >= size:
                raise InvalidRequest(f"{token} is not the id of a token (0 to {size - 1})", param=f"tokens[{index}]")
        decode = partial(model_text.decode, asked.tokens, skip_special_tokens=False)
        text = await services.tokenising.run(services_of.flow, len(asked.tokens), decode)
        answer = DetokenizedText(text)
        return Response(ENCODER.encode(answer), content_type="application/json")

    return blueprint


def _parse(body: dict[str, Any]) -> Parsed[TokenizeRequest]:
    """The body of /tokenize. Raises InvalidRequest for a field that would change the count and is not heeded."""
    given = [name for name in KINDS if body.get(name) is not None]
    g.lorax = given == ["inputs"]
    if len(given) != 1:
        raise InvalidRequest(
            "send one of prompt, messages and inputs", param="prompt", code=error_codes.MISSING_REQUIRED_PARAMETER
        )
    [kind] = given
    asked = convert(body, TokenizeRequest)
    check_adapters(asked)
    if asked.messages is not None and asked.add_special_tokens:
        raise InvalidRequest("the chat template alone begins a conversation; leave it out", param="add_special_tokens")
    unheeded = tuple(
        name
        for name in body
        if name not in TokenizeRequest.__struct_fields__ or (name in HEEDED and kind not in HEEDED[name])
    )
    if asked.messages is None:
        return Parsed(asked, unheeded)
    chat = {name: value for name, value in body.items() if name in CHAT_FIELDS}
    return Parsed(asked, (*unheeded, *parse_chat({"model": "", **chat}).ignored))


def _parse_tokens(body: dict[str, Any]) -> Parsed[DetokenizeRequest]:
    return Parsed(convert(body, DetokenizeRequest), unknown_fields(body, DetokenizeRequest, {}))


async def _spans(services: Services, asked: TokenizeRequest) -> list[TokenSpan]:
    """LoRAX's list: places count characters."""
    text, context = asked.inputs or "", services.model().max_context
    _refuse_long(services, text, "inputs", bounded=asked.truncate_prompt_tokens is None)
    caller = current_caller()
    services = services.for_request(await resolve_adapter(services, asked, caller), caller)

    def spans() -> list[TokenSpan]:
        found = services.text.spans(text, add_special_tokens=asked.add_special_tokens is not False)
        kept = len(truncated(asked, tuple(id for id, _, _ in found), context))
        return [TokenSpan(id, text[start:stop], start, stop) for id, start, stop in found[len(found) - kept :]]

    return await services.tokenising.run(services.flow, len(text), spans)


async def _listed(services: Services, asked: TokenizeRequest) -> TokenList:
    """vLLM's object."""
    context = services.model().max_context
    adapter = await resolve_adapter(services, asked, current_caller())
    services = services.for_request(adapter, current_caller())
    if asked.prompt is None:
        tokens = await _conversation(services, asked, adapter)
    else:
        _refuse_long(services, asked.prompt, "prompt", bounded=asked.truncate_prompt_tokens is None)
        [found] = await encode(services, [asked.prompt], add_special_tokens=asked.add_special_tokens is not False)
        tokens = tuple(found)
    tokens = truncated(asked, tokens, context)
    return TokenList(
        count=len(tokens),
        max_model_len=context,
        tokens=tokens,
        token_strs=_words(services, tokens) if asked.return_token_strs else None,
    )


def _words(services: Services, tokens: Sequence[int]) -> list[str]:
    words = {id: readable(services.text.token_bytes(id)) for id in set(tokens)}
    return [words[id] for id in tokens]


def _refuse_long(services: Services, text: str, param: str, bounded: bool) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"it has {len(text)} characters; {MAX_CHARACTERS} are allowed", param=param)
    if bounded:
        refuse_too_long(services, text, param)


async def _conversation(services: Services, asked: TokenizeRequest, adapter: ServedAdapter | None) -> tuple[int, ...]:
    chat = ChatRequest(**{name: getattr(asked, name) for name in CHAT_FIELDS})
    template = await find_template(services, adapter)
    return await render_chat(services, chat, template, tool_use(services, chat, template))
