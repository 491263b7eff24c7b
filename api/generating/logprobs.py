"""Writes token events as OpenAI's two shapes of logprobs: chat's list of objects and completions' parallel lists.

Tokens that end a text (EOS, a stop token, the tokens of a stop string) are reported only if token ids are.
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
    """The logprob as a number that JSON can hold."""
    return LOWEST if logprob is None else max(logprob, LOWEST)


def readable(piece: bytes) -> str:
    """A token's text; bytes that are not whole characters are written as \\xNN."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "".join(f"\\x{byte:02x}" for byte in piece)


def shown_tokens(tokens: Iterable[TokenEvent]) -> list[TokenEvent]:
    """All tokens but those that ended the text."""
    return [event for event in tokens if event.stop_id is None]


@dataclass(frozen=True)
class TokenReport:
    """How a request's tokens are reported: their `ids` beside the answer, `named_by_id` in logprobs.

    Both are for training, which needs every sampled token: `include_end` reports those that ended the text, too.
    """

    ids: bool = False
    named_by_id: bool = False
    include_end: bool = False

    def reported(self, tokens: Iterable[TokenEvent]) -> list[TokenEvent]:
        """The tokens that are reported."""
        return list(tokens) if self.include_end else shown_tokens(tokens)

    def name(self, token: int, text: str) -> str:
        """The name in logprobs of a token whose text is `text`."""
        return f"token_id:{token}" if self.named_by_id else text


PLAIN = TokenReport()


def chat_logprobs(tokenizer: ModelTokenizer, tokens: Iterable[TokenEvent], report: TokenReport = PLAIN) -> ChatLogprobs:
    """`choices[].logprobs` of a chat answer or chunk."""
    content = []
    for event in report.reported(tokens):
        piece = tokenizer.token_bytes(event.token)
        top = [_top(tokenizer, report, *alternative) for alternative in event.top]
        name = report.name(event.token, readable(piece))
        content.append(TokenLogprob(name, finite(event.logprob), list(piece), top))
    return ChatLogprobs(content)


def _top(tokenizer: ModelTokenizer, report: TokenReport, token: int, logprob: float) -> TopLogprob:
    piece = tokenizer.token_bytes(token)
    return TopLogprob(report.name(token, readable(piece)), finite(logprob), list(piece))


def packed(entry: T) -> T:
    """`entry` encoded as JSON: much smaller, and no work remains for the end of a long answer."""
    return cast(T, msgspec.Raw(ENCODER.encode(entry)))


@dataclass(frozen=True)
class Echo:
    """The prompt that a completion echoes: its text, and the offset in it of each of its tokens."""

    text: str = ""
    offsets: tuple[int, ...] = ()


def echo_offsets(tokenizer: ModelTokenizer, prompt: Sequence[int], original: str | None) -> tuple[int, ...]:
    """The offset in the echoed text of each token of a prompt. `original` is the caller's text, if that is echoed.

    Special tokens that are written out in `original` are part of the text.
    """
    detokenizer = Detokenizer(tokenizer.pieces)
    lengths = [len(detokenizer.push(token)) for token in prompt]
    # Tokenise again only where the tokens' texts differ from the text, as with special tokens.
    if original is not None and sum(lengths) != len(original):
        return _offsets_in(original, tokenizer.spans(original, add_special_tokens=True))
    return tuple(accumulate(lengths[:-1], initial=0))


def _offsets_in(text: str, spans: Iterable[tuple[int, int, int]]) -> tuple[int, ...]:
    """The offsets in `text` of the tokens with these (id, start, stop)."""
    offsets, end = [], 0
    for _, start, stop in spans:
        if stop == 0:  # it has no text
            start = end
        elif start > end:  # the span leaves out the token's leading space
            start = end + len(text[end:start].rstrip())
        offsets.append(start)
        end = max(end, stop)
    return tuple(offsets)


class CompletionLogprobsWriter:
    """Writes one choice's logprobs chunk by chunk, with offsets into its text, which begins with `echo`.

    If a character spans several tokens, all of them get its offset.
    """

    def __init__(
        self, tokenizer: ModelTokenizer, prompt: Sequence[int], echo: Echo, report: TokenReport = PLAIN
    ) -> None:
        self._tokenizer, self._echo, self._report = tokenizer, echo, report
        self._detokenizer = Detokenizer(tokenizer.pieces, prompt)
        self._offset = len(echo.text)

    def write(self, tokens: Iterable[TokenEvent]) -> CompletionLogprobs:
        """`choices[].logprobs` of the next tokens, after those of the prompt if the first token carries them."""
        result = CompletionLogprobs([], [], [], [])
        for event in tokens:
            for entry, offset in zip(event.prompt_logprobs, self._echo.offsets, strict=False):
                self._add(result, entry, offset)
            if self._report.reported([event]):
                self._add(result, PromptLogprob(event.token, finite(event.logprob), event.top), self._offset)
            if event.stop_id is None:
                self._offset += len(self._detokenizer.push(event.token))
        return result

    def _add(self, result: CompletionLogprobs, entry: PromptLogprob, offset: int) -> None:
        name = self._name(entry.token)
        logprob = None if entry.logprob is None else finite(entry.logprob)
        top = {self._name(other): finite(value) for other, value in entry.top}
        result.text_offset.append(offset)
        result.token_logprobs.append(logprob)
        result.tokens.append(name)
        result.top_logprobs.append(None if logprob is None else {**top, name: logprob})

    def _name(self, token: int) -> str:
        return self._report.name(token, _completion_name(self._tokenizer.token_bytes(token)))


def _completion_name(piece: bytes) -> str:
    text = readable(piece)
    return text if text.encode() == piece else f"bytes:{text}"
