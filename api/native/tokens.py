"""POST /tokenize, in LoRAX's shape (`inputs`) or vLLM's (`prompt` or `messages`), and vLLM's /detokenize."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, cast

import msgspec
from msgspec import UNSET, Meta, UnsetType
from quart import Blueprint, Response, g, request

from motet.api.adapter_choice import chosen_adapter
from motet.api.answers import ENCODER
from motet.api.caller import current_caller
from motet.api.chat_prompts import chat_prompt, find_template
from motet.api.errors import error_response
from motet.api.native.answers import NativeError
from motet.api.native.errors import native_error_response
from motet.api.operations import ERRORS, TOKEN, Operation
from motet.api.parsing import convert, decode_object
from motet.api.prompts import encode
from motet.api.schemas import AdapterChoice, ChatRequest, Message, TokenId
from motet.api.services import Services
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
        bool | None, Meta(description="Begin as prompts begin; default: true for texts, false for conversations.")
    ] = None
    add_generation_prompt: Annotated[bool | None, Meta(description="For messages; default: true.")] = None
    continue_final_message: Annotated[bool | None, Meta(description="For messages; default: false.")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, Meta(description="For messages.")] = None
    return_token_strs: Annotated[bool | None, Meta(description="Answer with each token's text, too.")] = None


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
    tokens: list[int]
    token_strs: list[str] | UnsetType | None = UNSET


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Meta(max_length=MAX_TOKENS, description="Token ids.", examples=[[504, 5107]])]
    model: Annotated[str | None, Meta(description="Accepted; all adapters share the base's tokenizer.")] = None


class DetokenizedText(msgspec.Struct, frozen=True):
    """The text of tokens, special ones written out."""

    prompt: str


_FAILURE = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ErrorBody", "NativeError")]}
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
        parts=(TokenList, TokenSpan, NativeError),
    ),
    Operation(
        "post",
        "/detokenize",
        "The text of tokens",
        "tokens",
        DetokenizedText,
        body=DetokenizeRequest,
        example={"model": "", "tokens": [504, 5107]},
        errors=(401, 503),
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("tokens", __name__)

    @blueprint.errorhandler(MotetError)
    async def on_error(error: MotetError) -> Response:
        respond = native_error_response if g.get("lorax") else error_response
        return respond(error.info())

    @blueprint.post("/tokenize")
    async def tokenize() -> Response:
        body = await _body()
        g.lorax = "inputs" in body
        asked = convert(body, TokenizeRequest)
        answer = await (_spans(services, asked) if asked.inputs is not None else _listed(services, asked))
        return Response(ENCODER.encode(answer), content_type="application/json")

    @blueprint.post("/detokenize")
    async def detokenize() -> Response:
        asked = convert(await _body(), DetokenizeRequest)
        size = services.text.vocab_size
        for index, token in enumerate(asked.tokens):
            if token >= size:
                raise InvalidRequest(f"{token} is not the id of a token (0 to {size - 1})", param=f"tokens[{index}]")
        text = await asyncio.to_thread(services.text.decode, asked.tokens, skip_special_tokens=False)
        answer = DetokenizedText(text)
        return Response(ENCODER.encode(answer), content_type="application/json")

    return blueprint


async def _body() -> dict[str, Any]:
    return decode_object(cast(bytes, await request.get_data(as_text=False)), request.mimetype)


async def _spans(services: Services, asked: TokenizeRequest) -> list[TokenSpan]:
    """LoRAX's list: places count characters."""
    text = asked.inputs or ""
    _refuse_long(text, "inputs")
    special = asked.add_special_tokens is not False
    spans = await asyncio.to_thread(services.text.spans, text, add_special_tokens=special)
    return [TokenSpan(id, text[start:stop], start, stop) for id, start, stop in spans]


async def _listed(services: Services, asked: TokenizeRequest) -> TokenList:
    """vLLM's object. Raises InvalidRequest unless there is a prompt or there are messages."""
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidRequest(
            "send one of prompt, messages and inputs", param="prompt", code="missing_required_parameter"
        )
    if asked.prompt is not None:
        _refuse_long(asked.prompt, "prompt")
        special = asked.add_special_tokens is not False
        [tokens] = await encode(services, [asked.prompt], add_special_tokens=special)
    else:
        tokens = await _conversation(services, asked)
    words = await asyncio.to_thread(_words, services, tokens) if asked.return_token_strs else None
    return TokenList(
        count=len(tokens),
        max_model_len=services.model().max_context,
        tokens=tokens,
        token_strs=words,
    )


def _words(services: Services, tokens: list[int]) -> list[str]:
    return [services.text.decode([id], skip_special_tokens=False) for id in tokens]


def _refuse_long(text: str, param: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"it has {len(text)} characters; {MAX_CHARACTERS} are allowed", param=param)


async def _conversation(services: Services, asked: TokenizeRequest) -> list[int]:
    chat = ChatRequest(
        model=asked.model,
        adapter_id=asked.adapter_id,
        adapter_source=asked.adapter_source,
        api_token=asked.api_token,
        messages=asked.messages or [],
        add_generation_prompt=asked.add_generation_prompt,
        continue_final_message=asked.continue_final_message,
        chat_template_kwargs=asked.chat_template_kwargs,
    )
    adapter = await chosen_adapter(services, chat, current_caller())
    template = await find_template(services, adapter)
    return list(await chat_prompt(services, chat, template, None))
