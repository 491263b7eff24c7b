"""Converts token ids to text incrementally.

Works on bytes: a character that spans tokens appears with its last token, and each token costs the same however long
the text is. (`tokenizers.DecodeStream` decodes its buffer again for every token of an invalid byte sequence, which is
quadratic, and cannot be flushed.)
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from motet.engine.client.token_bytes import TokenBytes

_LONGEST_CHARACTER = 4  # bytes, in UTF-8


class Detokenizer:
    """The text of one sequence. Special tokens are skipped, except those in `shown` or without `skip_special_tokens`.

    Invalid UTF-8 becomes U+FFFD. An unfinished character at the end is not part of the text; `flush` returns it.

    The text continues `prompt`. The space that sentencepiece drops at the beginning of a text is dropped only if the
    prompt has no text, and a character that the prompt leaves unfinished is completed here.
    """

    def __init__(
        self,
        pieces: TokenBytes,
        prompt: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        self._pieces = pieces
        self._skipped: frozenset[int] = pieces.special_ids - shown if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        # issuperset is a fast path for a prompt of special tokens only.
        self._first = self._skipped.issuperset(prompt) or not any(self._piece(token) for token in prompt)
        self._strip = pieces.decoding.strip if self._first else 0
        self._utf8.decode(self._tail(prompt))

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        if not self._piece(token_id):
            return ""
        piece = self._pieces.first(token_id) if self._first else self._pieces[token_id]
        self._first = False
        return self._stripped(self._utf8.decode(piece))

    def flush(self) -> str:
        """The rest of the text at the end: U+FFFD for an unfinished character, else empty."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _piece(self, token_id: int) -> bytes:
        return b"" if token_id in self._skipped else self._pieces[token_id]

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """The prompt's last bytes, enough to tell whether a character is unfinished."""
        tail = b""
        for token_id in reversed(prompt):
            if token_id in self._skipped:  # no character spans a special token
                break
            tail = self._piece(token_id) + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        return tail

    def _stripped(self, text: str) -> str:
        leading = min(len(text) - len(text.lstrip(" ")), self._strip)
        self._strip = self._strip - leading if leading == len(text) else 0
        return text[leading:]
