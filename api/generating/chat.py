"""A chat request, checked and rendered, running as typed deltas. Knows nothing of HTTP or of a route's JSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import msgspec

from motet.api.generating.chat_prompts import chat_prompt, find_template, ignored_hints
from motet.api.generating.custom_tools import InputReader
from motet.api.generating.generation import Checked, Generation, check, merge
from motet.api.generating.repeated_calls import RepeatedCalls
from motet.api.generating.tools import ToolUse, tool_name, tool_use
from motet.api.http.caller import Caller
from motet.api.schema.objects import CallKind, ChatFinishReason
from motet.api.schema.requests import ChatRequest
from motet.api.services import Services
from motet.core.chat_templates import ChatTemplate
from motet.core.errors import InvalidRequest
from motet.core.messages import TokenEvent
from motet.core.tools import CallPiece
from motet.engine.client.text_stream import TextDelta

PARAMETERS, DEFINITION = "function.parameters", "custom.format.grammar.definition"
"""Where a tool has the grammar of its calls."""


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: `index` counts the message's calls; `id` and `name` come once, first; then arguments.

    The arguments of a `custom` tool's call are its input, plain text.
    """

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    kind: CallKind = "function"


class ChatDelta(msgspec.Struct, frozen=True):
    """What a choice's message gains: texts and pieces of calls, as they come one after another.

    `finish_reason` is set on the choice's last delta alone. `more`: the next delta is there already.
    """

    parts: tuple[str | CallDelta, ...]
    tokens: tuple[TokenEvent, ...]
    finish_reason: ChatFinishReason | None = None
    stop_reason: str | int | None = None
    more: bool = False

    @property
    def text(self) -> str:
        """What is no call, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def calls(self) -> tuple[CallDelta, ...]:
        """The pieces of calls."""
        return tuple(part for part in self.parts if isinstance(part, CallDelta))


@dataclass
class Call:
    """A tool call, put together."""

    id: str
    name: str
    kind: CallKind
    arguments: list[str] = field(default_factory=list)


@dataclass
class ChatOutput:
    """One choice's message, put together."""

    texts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish_reason: ChatFinishReason | None = None

    def add(self, delta: ChatDelta) -> None:
        """Take the next delta in."""
        self.texts.append(delta.text)
        self.ids += [event.token for event in delta.tokens]
        for call in delta.calls:
            if call.id is not None and call.name is not None:
                self.calls.append(Call(call.id, call.name, call.kind))
            self.calls[call.index].arguments.append(call.arguments)
        self.finish_reason = delta.finish_reason or self.finish_reason

    @property
    def tokens(self) -> int:
        """How many tokens it has, calls and what ended it included."""
        return len(self.ids)


class CallReader:
    """One choice's text, with the calls in it told apart."""

    def __init__(self, tools: ToolUse) -> None:
        self._reader = tools.parser.reader(tools.tools)
        self._several, self._forced, self._custom = tools.several, tools.forced, tools.custom
        # Where the model is free not to call, it may mean to do the same twice.
        self._repeated = RepeatedCalls() if tools.forced and tools.several else None
        self._calls = 0
        self._latest: list[str] = []  # the latest call's arguments
        self._is_raw = False  # they are plain text
        self._input: tuple[int, InputReader] | None = None  # of the latest call, if it is a custom tool's

    def read(self, delta: TextDelta) -> ChatDelta:
        """The same delta, with calls."""
        found = self._reader.push(delta.text) if delta.text else []
        finish: ChatFinishReason | None = delta.finish_reason
        if finish is not None:
            found += self._reader.finish()
        parts: list[str | CallDelta] = []
        for piece in found:
            # What comes after the only call that was allowed is no part of the answer.
            if isinstance(piece, CallPiece) and (self._several or piece.index == 0):
                parts += self._numbered(piece)
            elif isinstance(piece, str) and self._is_told(piece):
                parts.append(piece)
            if self._repeated is not None and self._repeated.found:
                return ChatDelta((*parts, *self._ended_input()), delta.tokens, "tool_calls")
        if finish is not None:
            parts += self._ended_input()
        if finish == "stop" and self._calls and (self._is_raw or _is_object("".join(self._latest))):
            finish = "tool_calls"
        return ChatDelta(tuple(parts), delta.tokens, finish, delta.stop_reason, delta.more)

    def _is_told(self, text: str) -> bool:
        # Where the answer must be calls, what else there is can only be one that was cut at its beginning.
        return bool(text) and not self._forced and (self._several or not self._calls)

    def _numbered(self, piece: CallPiece) -> list[CallDelta]:
        pieces = [piece] if self._repeated is None else self._repeated.push(piece)
        return [delta for released in pieces for delta in self._deltas(released)]

    def _deltas(self, piece: CallPiece) -> Iterator[CallDelta]:
        if piece.name is None:
            self._latest.append(piece.arguments)
            if self._input is None:
                yield CallDelta(piece.index, piece.arguments)
            elif text := self._input[1].push(piece.arguments):
                yield CallDelta(piece.index, text, kind="custom")
            return
        yield from self._ended_input()
        self._calls += 1
        self._latest, self._is_raw = [piece.arguments], piece.raw
        kind: CallKind = "function"
        arguments = piece.arguments
        if piece.name in self._custom:
            self._input = (piece.index, InputReader(piece.raw))
            arguments, kind = self._input[1].push(piece.arguments), "custom"
        yield CallDelta(piece.index, arguments, f"call_{uuid.uuid4().hex[:24]}", piece.name, kind)

    def _ended_input(self) -> list[CallDelta]:
        """What is left of the latest call's input, which is over."""
        ended, self._input = self._input, None
        text = ended[1].finish() if ended else ""
        return [CallDelta(ended[0], text, kind="custom")] if ended and text else []


def _is_object(arguments: str) -> bool:
    """Whether a call's arguments are whole: a stop string, or the model, may have ended the text within them."""
    try:
        return isinstance(json.loads(arguments), dict)  # which takes what clients take: a lone surrogate, 1e999
    except (ValueError, RecursionError):
        return False


@dataclass(frozen=True)
class ChatRun:
    """One chat request's sequences; read `deltas` as they come, or `collect` the whole.

    `ignored` are fields of the request that turned out to have no effect on it.
    """

    generation: Generation
    tools: ToolUse | None
    echo: str
    ignored: tuple[str, ...] = ()

    @classmethod
    async def start(
        cls, services: Services, request: ChatRequest, caller: Caller, response_id: str | None = None
    ) -> ChatRun:
        """Everything that can be refused before work starts has been, once this returns. Raises MotetError."""
        setup = await ChatSetup.of(services, request, caller)
        return await setup.run(services, request, response_id)

    def limited(self, max_tokens: int) -> ChatRun:
        """The same run, with answers of at most `max_tokens`, if that is less than the context leaves."""
        return replace(self, generation=self.generation.limited(max_tokens))

    async def deltas(self, services: Services) -> AsyncGenerator[tuple[int, ChatDelta], None]:
        """(choice, what it adds) as things come; closing this ends every sequence at once."""
        streams = [self._choice(index, stream) for index, stream in enumerate(self.generation.streams(services))]
        async with aclosing(merge(streams)) as merged:
            async for indexed in merged:
                yield indexed

    async def _choice(self, index: int, stream: AsyncGenerator[TextDelta, None]) -> AsyncGenerator[ChatDelta, None]:
        """One choice's deltas; its sequence ends with the last of them, though the model may have gone on."""
        reader = CallReader(self.tools) if self.tools else None
        echo = self.echo
        async with aclosing(stream):
            async for delta in stream:
                if reader is not None:
                    told = reader.read(delta)
                else:
                    parts = (delta.text,) if delta.text else ()
                    told = ChatDelta(parts, delta.tokens, delta.finish_reason, delta.stop_reason, delta.more)
                if echo:
                    told = msgspec.structs.replace(told, parts=(echo, *told.parts))
                    echo = ""
                if told.finish_reason is not None:
                    await stream.aclose()  # before the client has read the last of it
                    if delta.finish_reason is None:
                        self.generation.timing.take(index, TextDelta("", (), "stop"))
                    yield told
                    return
                yield told

    async def collect(
        self, services: Services, write_logprobs: Callable[[int, Sequence[TokenEvent]], None]
    ) -> list[ChatOutput]:
        """Every choice's whole message, in order.

        `write_logprobs` is given each (choice, tokens) as they come, if logprobs are wanted: at the end, the work for
        all of them would hold up everybody else.
        """
        outputs = [ChatOutput() for _ in self.generation.submits]
        async with aclosing(self.deltas(services)) as deltas:
            async for index, delta in deltas:
                outputs[index].add(delta)
                if self.generation.wants_logprobs:
                    write_logprobs(index, delta.tokens)
        return outputs


@dataclass(frozen=True)
class ChatSetup:
    """What a chat request comes to whatever its messages are: all but the prompt is settled."""

    checked: Checked
    template: ChatTemplate
    tools: ToolUse | None

    @classmethod
    async def of(cls, services: Services, request: ChatRequest, caller: Caller) -> ChatSetup:
        """Find the adapter and the template, and check the tools. Raises MotetError."""
        checked = await check(services, request, caller)
        services = services.for_request(checked.adapter, caller)
        template = await find_template(services, checked.adapter)
        tools = tool_use(services, request, template)
        if tools is not None:
            checked = await _with_grammar(services, request, checked, tools)
        return cls(checked, template, tools)

    async def run(self, services: Services, request: ChatRequest, response_id: str | None = None) -> ChatRun:
        """The run of `request`, which differs from the one that this is of in its messages alone. Raises MotetError."""
        tools, services = self.tools, services.for_request(self.checked.adapter, self.checked.caller)
        prompt = await chat_prompt(services, request, self.template, tools)
        generation = Generation.of(services, request, self.checked, [prompt], response_id)
        last = request.messages[-1]
        echo = last.text() if request.echo and last.role == "assistant" else ""
        ignored = ignored_hints(request, self.template)
        return ChatRun(replace(generation, shown=tools.shown) if tools else generation, tools, echo, ignored)


async def _with_grammar(services: Services, request: ChatRequest, checked: Checked, tools: ToolUse) -> Checked:
    await _check_inputs(services, request, tools)
    grammar = tools.grammar(services, checked.grammar)
    if grammar is None:
        return replace(checked, grammar=None)
    try:
        await services.grammars.check(grammar, "tools", owner=services.flow)
    except InvalidRequest:
        for index, tool in enumerate(request.tools or ()):
            if (alone := tools.grammar_of(services, tool_name(tool))) is not None:
                await services.grammars.check(alone, f"tools[{index}].{PARAMETERS}", owner=services.flow)
        raise
    return replace(checked, grammar=grammar)


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
