"""Turns one sequence's tokens into a stream of text: detokenises them and ends at a stop string."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec

from motet.core.messages import AddRequest, FinishReason, TokenEvent
from motet.engine.client.detokenizer import Detokenizer
from motet.engine.client.stop_strings import StopStrings
from motet.engine.client.tokenizer import ModelTokenizer


class TokenSource(Protocol):
    """The part of EngineClient that stream_text uses."""

    def generate(self, request: AddRequest) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        """The events of one new sequence, in batches of those that have arrived; closing the generator ends it."""


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of the answer: some text, or the end, or both.

    `tokens` are the events since the last delta: a token whose text is held back or unfinished comes with the delta
    that contains its text. Only the last delta has a `finish_reason`; its `stop_reason` is the stop string or the id
    of the request's stop token that ended the text, and None for EOS. The last `cut` tokens consist of the stop string
    only. `more` says that the next delta is available already, so that a writer can send them together.
    """

    text: str
    tokens: tuple[TokenEvent, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    cut: int = 0
    more: bool = False


class _TextBuilder:
    """The text of one sequence so far: the part that can be output, and whether it is complete."""

    def __init__(
        self, tokenizer: ModelTokenizer, request: AddRequest, stop: Sequence[str], shown: frozenset[int]
    ) -> None:
        self._detokenizer = Detokenizer(tokenizer.pieces, request.prompt, shown=shown)
        self._stops = StopStrings(stop)
        # A special token has no text to find a stop string in, so it is compared by id.
        self._special = {token_id: s for s in stop if (token_id := tokenizer.special_id(s)) is not None}
        self._params = request.params
        self._count = 0
        self._decoded = self._output = 0  # characters
        self._starts: list[int] = []  # of the tokens that no delta contains yet

    def push(self, event: TokenEvent) -> TextDelta:
        """The text that this token adds; the caller fills in the delta's tokens."""
        self._starts.append(self._decoded)
        delta = self._push(event)
        self._output += len(delta.text)
        if isinstance(delta.stop_reason, str):
            cut = sum(start >= self._output for start in self._starts)
            # Text that was held back from earlier tokens needs a token in its delta.
            delta = msgspec.structs.replace(delta, cut=min(cut, len(self._starts) - bool(delta.text)))
        if delta.text:
            self._starts.clear()
        return delta

    def _push(self, event: TokenEvent) -> TextDelta:
        self._count += 1
        stop_enabled = self._count >= self._params.min_tokens
        ended = event.stop_id is not None
        special = self._special.get(event.token) if stop_enabled and not ended else None
        text = "" if ended else self._detokenizer.push(event.token)
        self._decoded += len(text)
        output, stop = self._stops.push(text, enabled=stop_enabled)
        if stop or special:
            return TextDelta(output if stop else output + self._stops.flush(), (), "stop", stop or special)
        if event.finish:
            return TextDelta(output + self._stops.flush(), (), event.finish, self._request_stop(event.stop_id))
        return TextDelta(output, ())

    def _request_stop(self, stop_id: int | None) -> int | None:
        eos = () if self._params.ignore_eos else self._params.eos_token_ids
        return None if stop_id in eos else stop_id


async def stream_text(
    engine: TokenSource,
    tokenizer: ModelTokenizer,
    request: AddRequest,
    stop: Sequence[str],
    shown: frozenset[int] = frozenset(),
) -> AsyncGenerator[TextDelta, None]:
    """Stream the text of `request`, up to the first of the strings in `stop` (none of them empty).

    The text has no stop string, no special token (except those in `shown`) and no half character. A stop string that
    is complete before `min_tokens` tokens does not count. A stop string, or closing this generator, also ends the
    sequence in the engine. Raises what `engine.generate` raises.
    """
    builder = _TextBuilder(tokenizer, request, stop, shown)
    waiting: list[TokenEvent] = []
    async with aclosing(engine.generate(request)) as events:
        async for batch in events:
            deltas: list[TextDelta] = []
            for event in batch:
                waiting.append(event)
                delta = builder.push(event)
                if delta.text or delta.finish_reason is not None:
                    deltas.append(msgspec.structs.replace(delta, tokens=tuple(waiting)))
                    waiting.clear()
                if delta.finish_reason is not None:
                    await events.aclose()  # before the client has read the last delta
                    break
            for number, delta in enumerate(deltas, start=1):
                yield msgspec.structs.replace(delta, more=number < len(deltas))
