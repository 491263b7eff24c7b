"""Generates a response: converts the deltas of a chat to OpenAI's response events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from motet.api.generating.chat_deltas import CallDelta, ChatDelta
from motet.api.generating.chat_generation import ChatGeneration
from motet.api.generating.logprobs import chat_logprobs, shown_tokens
from motet.api.http.caller import Caller
from motet.api.http.sse import event_frame
from motet.api.responses.objects import IncompleteDetails, OutputItem, OutputText, ResponseObject, ResponseUsage
from motet.api.responses.requests import AnyResponseRequest
from motet.api.responses.tools import FlatTools, described
from motet.api.schema.openai_objects import CallKind
from motet.engine.client.tokenizer import ModelTokenizer

Event = tuple[str, dict[str, Any]]

_CALL_EVENTS = {
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}


def new_id() -> str:
    """A new response's id."""
    return f"resp_{uuid.uuid4().hex}"


def new_response(request: AnyResponseRequest, id: str, chat: ChatGeneration) -> ResponseObject:
    """The response before its generation; fields that the request leaves out have the values that will be used."""
    used, tools = chat.generation.sequences[0].params, chat.tools
    reasoning = request.reasoning
    form = (request.text.format if request.text else None) or {"type": "text"}
    return ResponseObject(
        id=id,
        created_at=int(time.time()),
        status="queued" if request.background else "in_progress",
        background=bool(request.background),
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        model=request.model,
        parallel_tool_calls=tools.parallel if tools else request.parallel_tool_calls is not False,
        previous_response_id=request.previous_response_id,
        reasoning={"effort": reasoning.effort if reasoning else None, "summary": None},
        store=request.stores,
        temperature=used.temperature if request.temperature is None else request.temperature,
        text={"format": form, "verbosity": (request.text and request.text.verbosity) or "medium"},
        tool_choice=request.tool_choice or "auto",
        tools=[described(tool) for tool in request.tools or () if tool is not None],
        top_logprobs=request.top_logprobs or 0,
        top_p=used.top_p if request.top_p is None else request.top_p,
        truncation=request.truncation or "disabled",
        user=request.user,
        metadata=dict(request.metadata or {}),
    )


@dataclass
class _OpenItem:
    """The item in progress, and its text or arguments so far."""

    item: OutputItem
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ResponseWriter:
    """Builds a response from deltas. Every method returns the events for the client."""

    def __init__(self, tokenizer: ModelTokenizer, response: ResponseObject, logprobs: bool, tools: FlatTools) -> None:
        self.response, self._tools = response, tools
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._items: list[OutputItem] = []
        self._open: _OpenItem | None = None
        self._tokens = 0
        self._pending_logprobs: list[dict[str, Any]] = []  # of tokens whose text has not come yet

    def begin(self) -> list[Event]:
        """The first events: the response is created and in progress."""
        self.response = replace(self.response, status="in_progress")
        return [self._response_event("response.created"), self._response_event("response.in_progress")]

    def write(self, delta: ChatDelta) -> list[Event]:
        """Add a delta."""
        self._tokens += len(delta.tokens)
        if self._logprobs:
            logprobs = chat_logprobs(self._tokenizer, shown_tokens(delta.tokens)).content
            self._pending_logprobs += [msgspec.to_builtins(entry) for entry in logprobs]
        events: list[Event] = []
        for part in delta.parts:
            events += self._text(part) if isinstance(part, str) else self._call(part)
        return events

    def end(self, reason: str, input_tokens: int) -> list[Event]:
        """End the response."""
        events = [] if self._items or self._open else self._open_message()
        cut = reason == "length"
        events += self._close("incomplete" if cut else "completed")
        usage = ResponseUsage(
            input_tokens=input_tokens, output_tokens=self._tokens, total_tokens=input_tokens + self._tokens
        )
        self.response = replace(
            self.response,
            status="incomplete" if cut else "completed",
            completed_at=None if cut else int(time.time()),
            incomplete_details=IncompleteDetails("max_output_tokens") if cut else None,
            output=self._items,
            usage=usage,
        )
        return [*events, self._response_event(f"response.{self.response.status}")]

    def _response_event(self, kind: str) -> Event:
        return kind, {"response": self.response}

    def _place(self, opened: _OpenItem) -> dict[str, Any]:
        return {"item_id": opened.item.id, "output_index": len(self._items)}

    def _text(self, text: str) -> list[Event]:
        events = []
        if self._open is None or self._open.item.type != "message":
            events = [*self._close("completed"), *self._open_message()]
        opened = self._open
        assert opened is not None
        logprobs, self._pending_logprobs = self._pending_logprobs, []
        opened.pieces.append(text)
        opened.logprobs += logprobs
        place = {**self._place(opened), "content_index": 0}
        return [*events, ("response.output_text.delta", {**place, "delta": text, "logprobs": logprobs})]

    def _open_message(self) -> list[Event]:
        id = f"msg_{uuid.uuid4().hex}"
        self._open = _OpenItem(OutputItem(type="message", id=id, status="in_progress", role="assistant", content=[]))
        place = {**self._place(self._open), "content_index": 0}
        return [self._added(self._open), ("response.content_part.added", {**place, "part": OutputText(text="")})]

    def _added(self, opened: _OpenItem) -> Event:
        return "response.output_item.added", {"output_index": len(self._items), "item": opened.item}

    def _call(self, call: CallDelta) -> list[Event]:
        events: list[Event] = []
        if call.id is not None and call.name is not None:
            events += self._close("completed")
            self._pending_logprobs = []  # they belong to the call
            self._open = _OpenItem(self._call_item(call.id, call.name, call.kind))
            events.append(self._added(self._open))
        opened = self._open
        assert opened is not None, "a call begins with its name"
        if call.arguments:
            opened.pieces.append(call.arguments)
            events.append((f"{_CALL_EVENTS[opened.item.type]}.delta", {**self._place(opened), "delta": call.arguments}))
        return events

    def _call_item(self, call_id: str, flat_name: str, kind: CallKind) -> OutputItem:
        namespace, name = self._tools.origin(flat_name)
        item = OutputItem(
            type="function_call",
            id=f"fc_{uuid.uuid4().hex}",
            status="in_progress",
            call_id=call_id,
            name=name,
            namespace=namespace,
            arguments="",
        )
        if kind == "function":
            return item
        return replace(item, type="custom_tool_call", id=f"ctc_{uuid.uuid4().hex}", arguments=None, input="")

    def _close(self, status: str) -> list[Event]:
        """End the item in progress, if there is one."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        place, text = self._place(opened), "".join(opened.pieces)
        if opened.item.type == "message":
            part = OutputText(text=text, logprobs=opened.logprobs)
            where = {**place, "content_index": 0}
            events: list[Event] = [
                ("response.output_text.done", {**where, "text": text, "logprobs": opened.logprobs}),
                ("response.content_part.done", {**where, "part": part}),
            ]
            item = replace(opened.item, content=[part], status=status)
        elif opened.item.type == "custom_tool_call":
            events = [(f"{_CALL_EVENTS[opened.item.type]}.done", {**place, "input": text})]
            item = replace(opened.item, input=text, status=status)
        else:
            data = {**place, "arguments": text, "name": opened.item.name}
            events = [(f"{_CALL_EVENTS[opened.item.type]}.done", data)]
            item = replace(opened.item, arguments=text, status=status)
        events.append(("response.output_item.done", {"output_index": len(self._items), "item": item}))
        self._items.append(item)
        return events


@dataclass(frozen=True)
class ResponseGeneration:
    """A response to generate: its chat, and its own input items."""

    chat: ChatGeneration
    response: ResponseObject
    items: list[dict[str, Any]]
    logprobs: bool
    caller: Caller
    tools: FlatTools

    @property
    def ignored(self) -> tuple[str, ...]:
        """The fields of the request that turned out to have no effect."""
        return tuple("text.verbosity" if name == "verbosity" else name for name in self.chat.ignored)

    async def events(self) -> AsyncGenerator[tuple[Sequence[Event], ResponseObject], None]:
        """What happens, and the response as it is then; closing this ends the generation. Raises MotetError."""
        writer = ResponseWriter(self.chat.generation.tokenizer, self.response, self.logprobs, self.tools)
        yield writer.begin(), writer.response
        reason, events = "stop", list[Event]()
        async with aclosing(self.chat.deltas()) as deltas:
            async for _, delta in deltas:
                reason = delta.finish_reason or reason
                events += writer.write(delta)
                if events and not delta.more:
                    yield events, writer.response
                    events = []
        yield writer.end(reason, self.chat.generation.prompt_tokens), writer.response

    async def whole(self) -> ResponseObject:
        """The complete response. Raises MotetError."""
        made = self.response
        async with aclosing(self.events()) as events:
            async for _, latest in events:
                made = latest
        return made


def frame(event: Event, number: int) -> bytes:
    """One server-sent event."""
    kind, data = event
    return event_frame({"type": kind, "sequence_number": number, **data}, kind)
