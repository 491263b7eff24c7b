"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from msgspec import UNSET, UnsetType
from quart import Blueprint, Response

from motet.api.generating.chat import Call, CallDelta, ChatOutput, ChatRun
from motet.api.generating.generation import finished
from motet.api.generating.logprobs import chat_logprobs, packed
from motet.api.http.body import read_body
from motet.api.http.caller import Caller, current_caller
from motet.api.http.sse import DONE, event, stream_response
from motet.api.schema.ignored_fields import note_ignored
from motet.api.schema.objects import (
    ENCODER,
    AnsweredCall,
    CalledCustomTool,
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    CustomDelta,
    Delta,
    FunctionDelta,
    ToolCallDelta,
    Usage,
)
from motet.api.schema.operations import ERRORS, TOKEN, Operation
from motet.api.schema.parsing import parse_chat
from motet.api.schema.requests import ChatRequest
from motet.api.schema.unsupported_fields import CHAT
from motet.api.services import Services
from motet.core.messages import TokenEvent

OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answer a conversation",
        "generate",
        ChatCompletion,
        body=ChatRequest,
        chunk=ChatChunk,
        example={
            "model": "",
            "messages": [{"role": "user", "content": "Tell me about the sea."}],
            "max_tokens": 32,
        },
        refused=CHAT,
        errors=ERRORS,
        parameters=(TOKEN,),
    ),
)


def routes(services: Services) -> Blueprint:
    """The route, bound to `services`."""
    blueprint = Blueprint("chat", __name__)

    @blueprint.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        async with services.drain.interruptible():
            request = await read_body(parse_chat)
            run = await ChatRun.start(services, request, current_caller())
            note_ignored(run.ignored)
            if not request.stream:
                answer = await _whole(services, run)
                texts = (choice.message.content or "" for choice in answer.choices)
                headers = run.generation.headers(sum(map(len, texts)))
                return Response(ENCODER.encode(answer), headers=headers, content_type="application/json")
            return await stream_response(chat_events(run, services, request.include_usage), services.drain)

    return blueprint


async def answer_chat(services: Services, request: ChatRequest, caller: Caller) -> ChatCompletion:
    """The whole answer to `request`. Raises MotetError."""
    return await _whole(services, await ChatRun.start(services, request, caller))


async def _whole(services: Services, run: ChatRun) -> ChatCompletion:
    generation = run.generation
    logprobs = [ChatLogprobs([]) if generation.wants_logprobs else None for _ in generation.submits]

    def write_logprobs(index: int, tokens: Sequence[TokenEvent]) -> None:
        if (written := logprobs[index]) is not None:
            written.content.extend(map(packed, chat_logprobs(generation.text, tokens, generation.report).content))

    outputs = await run.collect(services, write_logprobs)
    choices = [
        ChatChoice(
            index,
            _message(output),
            logprobs[index],
            finished(output.finish_reason),
            output.ids if generation.report.ids else UNSET,
        )
        for index, output in enumerate(outputs)
    ]
    return ChatCompletion(
        id=generation.id,
        created=generation.created,
        model=generation.model,
        choices=choices,
        usage=generation.usage(sum(output.tokens for output in outputs)),
        system_fingerprint=generation.fingerprint,
        prompt_token_ids=generation.prompt_ids(0),
    )


def _message(output: ChatOutput) -> ChatMessage:
    text = "".join(output.texts)
    if not output.calls:
        return ChatMessage(content=text)
    return ChatMessage(content=text or None, tool_calls=[_answered(call) for call in output.calls])


def _answered(call: Call) -> AnsweredCall:
    arguments = "".join(call.arguments)
    if call.kind == "custom":
        return AnsweredCall(id=call.id, type="custom", custom=CalledCustomTool(call.name, arguments))
    return AnsweredCall(id=call.id, function=CalledFunction(call.name, arguments))


def _call_delta(call: CallDelta) -> ToolCallDelta:
    begins = call.id is not None and call.name is not None
    id, kind, name = (call.id or UNSET, call.kind, call.name or UNSET) if begins else (UNSET, UNSET, UNSET)
    if call.kind == "custom":
        return ToolCallDelta(index=call.index, id=id, type=kind, custom=CustomDelta(name, call.arguments))
    return ToolCallDelta(index=call.index, id=id, type=kind, function=FunctionDelta(name, call.arguments))


async def chat_events(run: ChatRun, services: Services, include_usage: bool) -> AsyncGenerator[bytes, None]:
    """The stream: each choice's role, its text, its finish; then usage, if it is wanted; then [DONE]."""
    generation = run.generation
    usage = None if include_usage else UNSET

    def chunk(
        *choices: ChatChunkChoice,
        usage: Usage | UnsetType | None = usage,
        prompt_ids: tuple[int, ...] | UnsetType = UNSET,
    ) -> bytes:
        return event(
            ChatChunk(
                id=generation.id,
                created=generation.created,
                model=generation.model,
                choices=choices,
                system_fingerprint=generation.fingerprint,
                usage=usage,
                prompt_token_ids=prompt_ids,
            )
        )

    # The SDK's accumulator wants choices to come up in the order of their indexes. Not sent before there is
    # something to say: until then a failure still gets a status of its own.
    hello = Delta(role="assistant", content="")
    frames = b"".join(
        chunk(ChatChunkChoice(index, hello), prompt_ids=generation.prompt_ids(index))
        for index in range(len(generation.submits))
    )
    count = 0
    async with aclosing(run.deltas(services)) as deltas:
        async for index, delta in deltas:
            count += len(delta.tokens)
            tokens = generation.report.reported(delta.tokens) if generation.wants_logprobs else ()
            ids = generation.ids(delta.tokens) or UNSET
            if delta.text or tokens or ids:
                logprobs = chat_logprobs(generation.text, tokens, generation.report) if tokens else None
                frames += chunk(ChatChunkChoice(index, Delta(content=delta.text), logprobs, token_ids=ids))
            for call in delta.calls:
                frames += chunk(ChatChunkChoice(index, Delta(tool_calls=[_call_delta(call)])))
            if delta.finish_reason is not None:
                frames += chunk(ChatChunkChoice(index, Delta(), None, delta.finish_reason))
            if frames and not delta.more:
                yield frames
                frames = b""
    yield (chunk(usage=generation.usage(count)) if include_usage else b"") + DONE
