"""A chat request, checked and rendered, running as typed deltas. Knows nothing of HTTP or of a route's JSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import msgspec

from motet.api.answers import ChatFinishReason
from motet.api.caller import Caller
from motet.api.chat_prompts import chat_prompt, find_template, ignored_hints
from motet.api.generation import Checked, Generation, check
from motet.api.schemas import ChatRequest
from motet.api.services import Services
from motet.api.tools import ToolUse, tool_use
from motet.core.errors import InvalidRequest
from motet.core.messages import TokenEvent
from motet.core.templates import ChatTemplate
from motet.core.tools import CallPiece
from motet.engine.client.text_stream import TextDelta


class CallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call: `index` counts the message's calls; `id` and `name` come once, first; then arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


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
                self.calls.append(Call(call.id, call.name))
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
        self._several, self._forced = tools.several, tools.forced
        self._calls = 0
        self._latest: list[str] = []  # the latest call's arguments

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
                parts.append(self._numbered(piece))
            elif isinstance(piece, str) and self._is_told(piece):
                parts.append(piece)
        if finish == "stop" and self._calls and _is_object("".join(self._latest)):
            finish = "tool_calls"
        return ChatDelta(tuple(parts), delta.tokens, finish, delta.stop_reason, delta.more)

    def _is_told(self, text: str) -> bool:
        # Where the answer must be calls, what else there is can only be one that was cut at its beginning.
        return bool(text) and not self._forced and (self._several or not self._calls)

    def _numbered(self, piece: CallPiece) -> CallDelta:
        if piece.name is not None:
            self._calls += 1
            self._latest.clear()
        self._latest.append(piece.arguments)
        if piece.name is None:
            return CallDelta(piece.index, piece.arguments)
        return CallDelta(piece.index, piece.arguments, f"call_{uuid.uuid4().hex[:24]}", piece.name)


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
        tools = self.tools
        readers = [CallReader(tools) for _ in self.generation.submits] if tools else None
        echoes = [self.echo] * len(self.generation.submits)
        async with aclosing(self.generation.deltas(services)) as deltas:
            async for index, delta in deltas:
                if readers is not None:
                    told = readers[index].read(delta)
                else:
                    parts = (delta.text,) if delta.text else ()
                    told = ChatDelta(parts, delta.tokens, delta.finish_reason, delta.stop_reason, delta.more)
                if echoes[index]:
                    told = msgspec.structs.replace(told, parts=(echoes[index], *told.parts))
                    echoes[index] = ""
                yield index, told

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
        services = services.for_adapter(checked.adapter)
        template = await find_template(services, checked.adapter)
        tools = tool_use(services, request, template)
        if tools is not None:
            checked = await _with_grammar(services, request, checked, tools)
        return cls(checked, template, tools)

    async def run(self, services: Services, request: ChatRequest, response_id: str | None = None) -> ChatRun:
        """The run of `request`, which differs from the one that this is of in its messages alone. Raises MotetError."""
        tools, services = self.tools, services.for_adapter(self.checked.adapter)
        prompt = await chat_prompt(services, request, self.template, tools)
        generation = Generation.of(services, request, self.checked, [prompt], response_id)
        last = request.messages[-1]
        echo = last.text() if request.echo and last.role == "assistant" else ""
        ignored = ignored_hints(request, self.template)
        return ChatRun(replace(generation, shown=tools.shown) if tools else generation, tools, echo, ignored)


async def _with_grammar(services: Services, request: ChatRequest, checked: Checked, tools: ToolUse) -> Checked:
    grammar = tools.grammar(services, checked.grammar)
    if grammar is None:
        return replace(checked, grammar=None)
    try:
        await services.grammars.check(grammar, "tools")
    except InvalidRequest:
        for index, tool in enumerate(request.tools or ()):
            if (alone := tools.grammar_of(services, tool.function.name)) is not None:
                await services.grammars.check(alone, f"tools[{index}].function.parameters")
        raise
    return replace(checked, grammar=grammar)
