"""The text side of one base model: its tokenizer, its special tokens, its generation defaults.

Reads a transformers directory (tokenizer.json, tokenizer_config.json, special_tokens_map.json,
generation_config.json). Knows no requests and nothing of weights; chat templates are plugins' to find.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from motet.core.adapter_tokens import AdapterTokens, special_tokens
from motet.core.errors import StartupError
from motet.engine.client.adapter_tokenizer import renamed
from motet.engine.client.detokenizer import Detokenizer
from motet.engine.client.token_bytes import TokenBytes, read_decoding

ADAPTERS = 64
"""Text sides of adapters that are kept; one costs its own tokens alone, since the vocabulary is shared."""

# How families of models mark a gap to be filled: before the prefix, before the suffix, before the answer.
_GAPS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


class GenerationDefaults(msgspec.Struct, frozen=True):
    """The sampling that a model's authors recommend; None where they say nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class ModelTokenizer:
    """Everything about the text of the base model in `directory`.

    `eos_token_ids` are generation_config's and the tokenizer's; `special_tokens` maps `bos_token`, `eos_token`
    and so on to their texts, as chat templates see them; `fingerprint` is the SHA-256 of tokenizer.json;
    `vocab_size` is the tokenizer's; `renamed_words` are tokens that an adapter has in place of base tokens that stand
    for text. Raises StartupError naming the file that is missing or broken.
    """

    def __init__(self, directory: Path) -> None:
        data = _read(directory / "tokenizer.json")
        if data is None:
            raise StartupError(
                f"{directory}: no tokenizer.json; save the model's tokenizer with transformers' save_pretrained",
                param="model",
            )
        self.fingerprint = hashlib.sha256(data).hexdigest()
        try:
            self._tokenizer = Tokenizer.from_buffer(data)
        except Exception as error:  # the library raises bare Exception
            raise StartupError(f"{directory / 'tokenizer.json'}: {error}", param="model") from error
        self._places: Mapping[int, int] = {}  # what ids of the library's stand for, where an adapter renamed tokens
        # A file saved in training may carry both; a prompt must come through whole.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pieces = TokenBytes(self._tokenizer, read_decoding(json.loads(data).get("decoder")))
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        config = _read_object(directory / "special_tokens_map.json") | _read_object(directory / "tokenizer_config.json")
        self.special_tokens = special_tokens(config)
        generation = _read_object(directory / "generation_config.json")
        # Like transformers, which makes a missing generation_config out of config.json.
        stated = generation or _read_object(directory / "config.json")
        self.eos_token_ids = self._eos_token_ids(stated.get("eos_token_id"))
        self.generation = _generation_defaults(generation)
        self._adapters: OrderedDict[AdapterTokens, ModelTokenizer] = OrderedDict()
        self.base = self  # of an adapter's text side, the base model's
        self.renamed_words: tuple[str, ...] = ()

    def for_adapter(self, tokens: AdapterTokens) -> ModelTokenizer:
        """The text side of an adapter whose tokenizer differs from this one by `tokens`; takes about a millisecond.

        Its `eos_token_ids` are these and its own `eos_token`'s. Raises AdapterRefused if `tokens` fit no vocabulary.
        """
        if not tokens:
            return self
        if (known := self._adapters.get(tokens)) is None:
            known = self._adapters[tokens] = self._changed(tokens)
            if len(self._adapters) > ADAPTERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(tokens)
        return known

    def _changed(self, tokens: AdapterTokens) -> ModelTokenizer:
        other = copy.copy(self)
        other._adapters = OrderedDict()
        other.fingerprint = hashlib.sha256(self.fingerprint.encode() + msgspec.msgpack.encode(tokens)).hexdigest()
        if tokens.added:
            other._tokenizer, other._places = renamed(self._tokenizer, tokens.added)
            other.pieces = self.pieces.renamed(tokens.added)
            ordinary = {token.id for token in tokens.added} - self.pieces.special_ids
            other.renamed_words = tuple(t.content for t in tokens.added if t.id in ordinary and self.pieces[t.id])
            other.vocab_size = max(self.vocab_size, *(token.id + 1 for token in tokens.added))
        special = {**self.special_tokens, **dict(tokens.special)}
        other.special_tokens = {name: text for name, text in special.items() if text is not None}
        other.eos_token_ids = other._eos_token_ids(list(self.eos_token_ids))
        return other

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`; special tokens that are written out in it become their ids."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """The token ids of each text. Holds no lock of the interpreter, so a thread may take its time over it."""
        # Only the library's batches let other threads run meanwhile.
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [self._placed(encoding.ids) for encoding in found]

    def spans(self, text: str, *, add_special_tokens: bool) -> list[tuple[int, int, int]]:
        """(token id, start, stop) of each token of `text`; places count characters, special tokens have none."""
        [found] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)  # as in encode_batch
        return [(id, start, stop) for id, (start, stop) in zip(self._placed(found.ids), found.offsets, strict=True)]

    def gap_ids(self) -> tuple[int, int, int] | None:
        """The ids of the tokens before a prefix, before a suffix and before what goes between; None without them.

        Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", 2022.
        """
        for names in _GAPS:
            prefix, suffix, middle = map(self._id, names)
            if prefix is not None and suffix is not None and middle is not None:
                return prefix, suffix, middle
        return None

    def opening_ids(self) -> list[int]:
        """The ids that the tokenizer puts before every text: its beginning-of-text token, or none."""
        found = self._tokenizer.encode("a")
        return self._placed(found.ids)[: found.special_tokens_mask.index(0)]

    def may_fit(self, text: str, tokens: int) -> bool:
        """Whether `text` can be as few as `tokens` tokens at all; says so without tokenising it."""
        longest = tokens * self.pieces.longest
        return len(text) <= longest and len(text.encode()) <= longest

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, goes_on: bool = False) -> str:
        """The text of a whole sequence; what a Detokenizer gives piece by piece.

        If it `goes_on`, a character that is unfinished at the end is left to what follows; else it is U+FFFD.
        """
        detokenizer = Detokenizer(self.pieces, skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.push, ids)) + ("" if goes_on else detokenizer.flush())

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token: part of a character, perhaps; a special token's name; b"" if unknown."""
        return self.pieces[token_id]

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is written `text`, if there is one."""
        token_id = self._id(text)
        return token_id if token_id in self.pieces.special_ids else None

    def _placed(self, ids: list[int]) -> list[int]:
        """The model's ids for the library's."""
        return [self._places.get(id, id) for id in ids] if self._places else ids

    def _id(self, text: str) -> int | None:
        """The id of the token that is written `text`, if there is one."""
        found: int | None = self._tokenizer.token_to_id(text)
        if found is None or found in self._places:
            return None if found is None else self._places[found]
        # The vocabulary still has the former name of a token that an adapter renamed.
        return None if found in self._places.values() else found

    def _eos_token_ids(self, stated: object) -> tuple[int, ...]:
        ids = [stated] if isinstance(stated, int) else stated
        if ids is not None and not (isinstance(ids, list) and all(isinstance(i, int) for i in ids)):
            raise StartupError(f"generation_config.json: eos_token_id {stated!r} is no token id", param="model")
        eos_token = self.special_tokens.get("eos_token", "")
        own = self._id(eos_token) if eos_token else None
        return tuple(dict.fromkeys([*(ids or ()), *(() if own is None else (own,))]))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartupError(f"{path}: {error.strerror}", param="model") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if there is no such file."""
    data = _read(path)
    try:
        # json, not msgspec: these files may say NaN or Infinity.
        value = {} if data is None else json.loads(data)
    except ValueError as error:
        raise StartupError(f"{path} is not JSON: {error}", param="model") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path} is not a JSON object", param="model")
    return value


def _generation_defaults(config: Mapping[str, Any]) -> GenerationDefaults:
    if not config.get("do_sample"):  # transformers would then decode greedily and look at none of them
        return GenerationDefaults()
    try:
        return msgspec.convert(dict(config), GenerationDefaults)
    except msgspec.ValidationError as error:
        raise StartupError(f"generation_config.json: {error}", param="model") from error
