"""The tokens of an adapter's tokenizer that differ from the base model's: added and special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that transformers passes to chat templates by name."""


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is matched before the text is tokenised; the fields are those of tokenizer.json."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class AdapterTokens(msgspec.Struct, frozen=True):
    """The differences between an adapter's tokenizer and the base model's.

    `added` are tokens whose ids have another string, or none, in the base tokenizer. `special` are the pairs of a name
    such as `bos_token` and the adapter's string (None: the adapter has no such token) that differ.
    """

    added: tuple[AddedToken, ...] = ()
    special: tuple[tuple[str, str | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.special)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens in tokenizer_config.json or special_tokens_map.json: name to string."""
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
