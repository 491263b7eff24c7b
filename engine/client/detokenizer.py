"""Token ids to text, as they come.

Works on bytes, so that a character cut by a token boundary appears when it is whole, and each token costs the
same however long the text is. (`tokenizers.DecodeStream` decodes its buffer again for every token of an
invalid byte sequence, which is quadratic, and cannot be flushed.) Knows no stop strings and no requests.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from motet.engine.client.token_bytes import TokenBytes

_LONGEST_CHARACTER = 4  # bytes, in UTF-8


class Detokenizer:
    """The text of one sequence. Special tokens are skipped unless asked for, or in `shown`.

    Bytes that are no UTF-8 become U+FFFD. A character that is still unfinished at the end is not part of the text,
    unless `flush` is asked what is left.

    The text continues `prompt`: the space that sentencepiece drops at the beginning of a text is dropped only
    if the prompt has no text of its own, and a character that the prompt leaves unfinished is finished here.
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
        # A set is through with a prompt of special tokens alone in no time.
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
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._stripped(self._utf8.decode(b"", final=True))

    def _piece(self, token_id: int) -> bytes:
        return b"" if token_id in self._skipped else self._pieces[token_id]

    def _tail(self, prompt: Sequence[int]) -> bytes:
        """The prompt's last bytes, enough of them to know whether a character is unfinished."""
        tail = b""
        for token_id in reversed(prompt):
            if token_id in self._skipped:  # which no character goes across
                break
            tail = self._piece(token_id) + tail
            if len(tail) >= _LONGEST_CHARACTER:
                break
        return tail

    def _stripped(self, text: str) -> str:
        leading = min(len(text) - len(text.lstrip(" ")), self._strip)
        self._strip = self._strip - leading if leading == len(text) else 0
        return text[leading:]
