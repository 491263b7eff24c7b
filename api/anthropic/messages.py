"""Anthropic's Messages API: POST /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import uuid
from functools import partial

from quart import Blueprint, Response

from motet.api.anthropic.errors import PATH, anthropic_error_frame
from motet.api.anthropic.objects import AnthropicError, MessageEvent, MessageObject, TokenCount
from motet.api.anthropic.requests import CountTokensRequest, MessagesRequest
from motet.api.anthropic.stream import write_stream, write_whole
from motet.api.anthropic.translate import Translated, anthropic_names, parse_counted, parse_messages
from motet.api.generating.chat_generation import start_chat
from motet.api.generating.chat_prompts import render_chat
from motet.api.generating.checked_chat import check_chat
from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.http.stream_response import joined, stream_response
from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation
from motet.api.services import Services

_EXAMPLE = {"model": "", "messages": [{"role": "user", "content": "Tell me about the sea."}]}

OPERATIONS = (
    Operation(
        "post",
        PATH,
        "Answer a conversation, in the shape of Anthropic's API",
        "anthropic",
        MessageObject,
        body=MessagesRequest,
        event=MessageEvent,
        example={**_EXAMPLE, "max_tokens": 32},
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
        error_response=AnthropicError,
    ),
    Operation(
        "post",
        f"{PATH}/count_tokens",
        "Count a request's prompt",
        "anthropic",
        TokenCount,
        body=CountTokensRequest,
        example=_EXAMPLE,
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
        error_response=AnthropicError,
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("anthropic", __name__)

    @blueprint.post(PATH)
    async def messages() -> Response:
        async with services.drain.interruptible():
            request, caller = await read_body(parse_messages), current_caller()
            with anthropic_names(request.tools):
                chat = await start_chat(services, request.chat, caller, f"msg_{uuid.uuid4().hex}")
            note_ignored("output_config.effort" for _ in chat.ignored)  # the one hint that these requests have
            chat = chat.limited(request.max_tokens)
            if request.chat.stream:
                failed = partial(anthropic_error_frame, request_id=caller.request_id)
                return await stream_response(joined(write_stream(chat, request.max_tokens)), services.drain, failed)
            message = await write_whole(chat, request.max_tokens)
            return json_response(message)

    @blueprint.post(f"{PATH}/count_tokens")
    async def count_tokens() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_counted)
            with anthropic_names(request.tools):
                count = await _count(services, request)
            return json_response(TokenCount(count))

    return blueprint


async def _count(services: Services, request: Translated) -> int:
    checked = await check_chat(services, request.chat, current_caller())
    return len(await render_chat(checked.services, request.chat, checked.template, checked.tools))
