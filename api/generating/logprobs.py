"""Token events as OpenAI's two shapes of logprobs: chat's list of objects and completions' parallel lists.

What ends a text (EOS, a stop token, the tokens of a stop string) is not shown, and reported only beside token ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar, cast

import msgspec

from motet.api.schema.openai_objects import ENCODER, ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from motet.core.messages import PromptLogprob, TokenEvent
from motet.engine.client.detokenizer import Detokenizer
from motet.engine.client.tokenizer import ModelTokenizer

# JSON has no infinity; this is what OpenAI writes instead.
LOWEST = -9999.0

T = TypeVar("T")


def finite(logprob: float | None) -> float:
    """A logprob that JSON can say."""
    return LOWEST if logprob is None else max(logprob, LOWEST)


def readable(piece: bytes) -> str:
    """A token's text; if its bytes are no whole characters, each is written as \\xNN."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)


def told(tokens: Iterable[TokenEvent]) -> list[TokenEvent]:
    """The tokens that are reported: all but those that ended the text."""
    return [event for event in tokens if event.stop_id is None]


@dataclass(frozen=True)
class TokenReport:
    """How a request's tokens are reported: their `ids` beside the answer, `named_by_id` in logprobs.

    Either is for training, which needs every token that was sampled: those too that `ended` the text are reported.
    """

    ids: bool = False
    named_by_id: bool = False
    ended: bool = False

    def reported(self, tokens: Iterable[TokenEvent]) -> list[TokenEvent]:
        """The tokens that are reported."""
        return list(tokens) if self.ended else told(tokens)

    def name(self, token: int, text: str) -> str:
        """What logprobs call a token whose text is `text`."""
        return f"token_id:{token}" if self.named_by_id else text


PLAIN = TokenReport()


def chat_logprobs(text: ModelTokenizer, tokens: Iterable[TokenEvent], report: TokenReport = PLAIN) -> ChatLogprobs:
    """`choices[].logprobs` of a chat answer or chunk."""
    content = []
    for event in report.reported(tokens):
        piece = text.token_bytes(event.token)
        top = [_top(text, report, *alternative) for alternative in event.top]
        name = report.name(event.token, readable(piece))
        content.append(TokenLogprob(name, finite(event.logprob), list(piece), top))
    return ChatLogprobs(content)


def _top(text: ModelTokenizer, report: TokenReport, token: int, logprob: float) -> TopLogprob:
    piece = text.token_bytes(token)
    return TopLogprob(report.name(token, readable(piece)), finite(logprob), list(piece))


def packed(entry: T) -> T:
    """`entry` as JSON already: a fraction of its size, and no work is left for when a long answer is complete."""
    return cast(T, msgspec.Raw(ENCODER.encode(entry)))


@dataclass(frozen=True)
class Echo:
    """What a completion begins with: its prompt's text, and where in it each of the prompt's tokens begins."""

    text: str = ""
    offsets: tuple[int, ...] = ()


def echo_offsets(text: ModelTokenizer, prompt: Sequence[int], given: str | None) -> tuple[int, ...]:
    """Where in the echoed text each token of a prompt begins. `given` is the prompt as the caller wrote it, if so.

    There, special tokens are part of the text if they were written out in it.
    """
    detokenizer = Detokenizer(text.pieces)
    lengths = [len(detokenizer.push(token)) for token in prompt]
    # Tokenised again only where that is not all of the text: special tokens, and what the tokenizer reads otherwise.
    if given is not None and sum(lengths) != len(given):
        return _offsets_in(given, text.spans(given, add_special_tokens=True))
    return tuple(accumulate(lengths[:-1], initial=0))


def _offsets_in(given: str, spans: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
    """Where in `given` the tokens begin that have these (id, start, stop) in it."""
    offsets, end = [], 0
    for _, start, stop in spans:
        if stop == 0:  # no text of its own
            start = end
        elif start > end:  # the span leaves out the space that its token begins with
            start = end + len(given[end:start].rstrip())
        offsets.append(start)
        end = max(end, stop)
    return tuple(offsets)


class CompletionLogprobsWriter:
    """Writes one choice's logprobs, chunk by chunk; keeps the place in its text, which begins with `echo`.

    A character may be spread over several tokens: all of them get the offset at which it stands.
    """

    def __init__(self, text: ModelTokenizer, prompt: Sequence[int], echo: Echo, report: TokenReport = PLAIN) -> None:
        self._text, self._echo, self._report = text, echo, report
        self._detokenizer = Detokenizer(text.pieces, prompt)
        self._place = len(echo.text)

    def write(self, tokens: Iterable[TokenEvent]) -> CompletionLogprobs:
        """`choices[].logprobs` for the next tokens, after the prompt's if the first one brings their scores."""
        result = CompletionLogprobs([], [], [], [])
        for event in tokens:
            for score, offset in zip(event.prompt_logprobs, self._echo.offsets, strict=False):
                self._add(result, score, offset)
            if self._report.reported([event]):
                self._add(result, PromptLogprob(event.token, finite(event.logprob), event.top), self._place)
            if event.stop_id is None:
                self._place += len(self._detokenizer.push(event.token))
        return result

    def _add(self, result: CompletionLogprobs, score: PromptLogprob, offset: int) -> None:
        name = self._name(score.token)
        logprob = None if score.logprob is None else finite(score.logprob)
        top = {self._name(other): finite(value) for other, value in score.top}
        result.text_offset.append(offset)
        result.token_logprobs.append(logprob)
        result.tokens.append(name)
        result.top_logprobs.append(None if logprob is None else {**top, name: logprob})

    def _name(self, token: int) -> str:
        return self._report.name(token, _legacy(self._text.token_bytes(token)))


def _legacy(piece: bytes) -> str:
    text = readable(piece)
    return text if text.encode() == piece else f"bytes:{text}"
