"""One sequence's tokens turned into a stream of text: detokenised, and ended at a stop string.

Knows the engine only as something that yields TokenEvents until it is closed.
"""

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
    """The part of EngineClient that is used here."""

    def generate(self, request: AddRequest) -> AsyncGenerator[tuple[TokenEvent, ...], None]:
        """The events of one new sequence, all that have come each time; closing the generator ends it."""


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of the answer: some text, or the end, or both.

    `tokens` are the events since the last delta: a token whose text is held back or unfinished comes with the
    delta that shows it. `finish_reason` is set on the last delta alone; `stop_reason` is then the stop string,
    or the id of the request's own stop token, that ended the text, and None for EOS. The last `cut` tokens say
    nothing but that stop string. `more` says that the next delta is there already: who writes to a socket does it
    once for all of them.
    """

    text: str
    tokens: tuple[TokenEvent, ...]
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    cut: int = 0
    more: bool = False


class _TextBuilder:
    """The text of one sequence so far: what may be shown, and whether it is complete."""

    def __init__(self, text: ModelTokenizer, request: AddRequest, stop: Sequence[str], shown: frozenset[int]) -> None:
        self._detokenizer = Detokenizer(text.pieces, request.prompt, shown=shown)
        self._stops = StopStrings(stop)
        # A special token has no text that a stop string could be found in, so that one goes by id.
        self._special = {token_id: s for s in stop if (token_id := text.special_id(s)) is not None}
        self._params = request.params
        self._count = 0
        self._written = self._shown = 0  # characters
        self._starts: list[int] = []  # of the tokens that no delta has told of

    def push(self, event: TokenEvent) -> TextDelta:
        """What this token adds; the delta's tokens are left for the caller to fill in."""
        self._starts.append(self._written)
        delta = self._push(event)
        self._shown += len(delta.text)
        if isinstance(delta.stop_reason, str):
            cut = sum(start >= self._shown for start in self._starts)
            # What was held back of earlier tokens needs one to come with.
            delta = msgspec.structs.replace(delta, cut=min(cut, len(self._starts) - bool(delta.text)))
        if delta.text:
            self._starts.clear()
        return delta

    def _push(self, event: TokenEvent) -> TextDelta:
        self._count += 1
        armed = self._count >= self._params.min_tokens
        ended = event.stop_id is not None
        special = self._special.get(event.token) if armed and not ended else None
        text = "" if ended else self._detokenizer.push(event.token)
        self._written += len(text)
        shown, found = self._stops.push(text, armed=armed)
        if found or special:
            return TextDelta(shown if found else shown + self._stops.flush(), (), "stop", found or special)
        if event.finish:
            return TextDelta(shown + self._stops.flush(), (), event.finish, self._own_stop(event.stop_id))
        return TextDelta(shown, ())

    def _own_stop(self, stop_id: int | None) -> int | None:
        eos = () if self._params.ignore_eos else self._params.eos_token_ids
        return None if stop_id in eos else stop_id


async def stream_text(
    engine: TokenSource,
    text: ModelTokenizer,
    request: AddRequest,
    stop: Sequence[str],
    shown: frozenset[int] = frozenset(),
) -> AsyncGenerator[TextDelta, None]:
    """The text of `request` as it comes, up to the first of the strings in `stop` (none of them empty).

    Stop strings and special tokens (but those in `shown`) are never shown, nor half a character. A stop string that
    is complete before `min_tokens` tokens does not count. On a stop string, and when this generator is closed, the
    sequence in the engine ends too. Raises what `engine.generate` raises.
    """
    builder = _TextBuilder(text, request, stop, shown)
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
                    await events.aclose()  # before the client has read the last of it
                    break
            for number, delta in enumerate(deltas, start=1):
                yield msgspec.structs.replace(delta, more=number < len(deltas))
