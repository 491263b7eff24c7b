"""The tokens of an adapter's tokenizer that differ from the base's: added and special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The ones that transformers knows by name and hands to chat templates."""


class AddedToken(msgspec.Struct, frozen=True):
    """A token that is found in a text before the text is tokenised; the fields are those of tokenizer.json."""

    id: int
    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class AdapterTokens(msgspec.Struct, frozen=True):
    """Where an adapter's tokenizer differs from its base's.

    `added` are tokens whose ids have another name in the base's tokenizer, or none; `special` has the texts of
    `bos_token` and so on (None: the adapter has no such token) that differ.
    """

    added: tuple[AddedToken, ...] = ()
    special: tuple[tuple[str, str | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.special)


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that tokenizer_config.json or special_tokens_map.json names, with their texts."""
    tokens = {}
    for name in SPECIAL_TOKENS:
        value = config.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[name] = text
    return tokens
