"""Maps each token of a vocabulary to its bytes.

Reads the `decoder` section of tokenizer.json: byte-level BPE, and the sentencepiece family (Replace, ByteFallback,
Fuse, Strip, Metaspace).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from tokenizers import Tokenizer

from motet.core.adapter_tokens import AddedToken
from motet.core.errors import StartupError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_table() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_table()


class Decoding(msgspec.Struct, frozen=True):
    """How a token's name is converted to bytes.

    `strip` is the number of spaces removed from the beginning of a text; `first_drops` is a character removed from the
    first token (sentencepiece writes a space before every word, including the first).
    """

    byte_level: bool = False
    byte_fallback: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    strip: int = 0
    first_drops: str = ""

    def piece(self, token: str, *, first: bool = False) -> bytes:
        """The bytes of one token; `first`: it is the first token of the text."""
        if self.byte_level:
            try:
                return bytes([_BYTE_LEVEL[character] for character in token])
            except KeyError:  # an added token, whose name is its text
                return token.encode()
        if first and self.first_drops:
            token = token.replace(self.first_drops, "")
        for old, new in self.replacements:
            token = token.replace(old, new)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return token.encode()


def read_decoding(decoder: Mapping[str, Any] | None) -> Decoding:
    """The decoding that tokenizer.json's `decoder` describes. Raises StartupError if it is not supported."""
    steps: Sequence[Mapping[str, Any]] = ()
    if decoder is not None:
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    decoding = Decoding()
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return Decoding(byte_level=True)
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                changed: dict[str, Any] = {"replacements": (*decoding.replacements, (old, new))}
            case {"type": "Metaspace", "replacement": old}:
                keep = step.get("prepend_scheme", "always") == "never"
                changed = {
                    "replacements": (*decoding.replacements, (old, " ")),
                    "first_drops": "" if keep else old,
                }
            case {"type": "ByteFallback"}:
                changed = {"byte_fallback": True}
            case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                changed = {"strip": start}
            case {"type": "Fuse"}:
                changed = {}
            case _:
                raise StartupError(f"tokenizer.json: the decoder step {step['type']} is not supported", param="model")
        decoding = msgspec.structs.replace(decoding, **changed)
    if not steps:
        raise StartupError("tokenizer.json: a tokenizer without a decoder is not supported", param="model")
    return decoding


class TokenBytes:
    """The bytes of every token of `tokenizer`, each computed once; `longest` is the length of the longest."""

    def __init__(self, tokenizer: Tokenizer, decoding: Decoding) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, bytes] = {}
        self._renamed: dict[int, str] = {}
        self.decoding = decoding
        self.special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.longest = max((len(decoding.piece(token)) for token in vocabulary), default=0)

    def renamed(self, tokens: Sequence[AddedToken]) -> TokenBytes:
        """A copy for a vocabulary in which `tokens` replace those with the same ids."""
        other = copy.copy(self)
        other._pieces = {}
        other._renamed = {token.id: token.content for token in tokens}
        special = {token.id for token in tokens if token.special}
        other.special_ids = self.special_ids - other._renamed.keys() | special
        other.longest = max(self.longest, *(len(token.content.encode()) for token in tokens))
        return other

    def __getitem__(self, token_id: int) -> bytes:
        """The exact bytes of one token, special or not; empty for an id that the tokenizer does not know."""
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._name(token_id)
            # A special token's name is its text; the decoder does not apply.
            piece = token.encode() if token_id in self.special_ids else self.decoding.piece(token)
            self._pieces[token_id] = piece
        return piece

    def first(self, token_id: int) -> bytes:
        """The bytes of a token at the beginning of a text."""
        if not self.decoding.first_drops:
            return self[token_id]
        return self.decoding.piece(self._name(token_id), first=True)

    def _name(self, token_id: int) -> str:
        if token_id in self._renamed:
            return self._renamed[token_id]
        # id_to_token accepts 32 bits. A model's padded vocabulary may have ids that the tokenizer lacks.
        return (self._tokenizer.id_to_token(token_id) or "") if 0 <= token_id < 1 << 32 else ""
