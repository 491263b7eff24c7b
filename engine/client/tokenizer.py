"""The tokenizer of a base model or of an adapter, with its special tokens and generation defaults.

Reads a transformers directory (tokenizer.json, tokenizer_config.json, special_tokens_map.json,
generation_config.json). Plugins find the chat templates.
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
from motet.engine.client.adapter_tokenizer import adapter_tokenizer
from motet.engine.client.detokenizer import Detokenizer
from motet.engine.client.token_bytes import TokenBytes, read_decoding

MAX_ADAPTER_TOKENIZERS = 64
"""Cached tokenizers of adapters. One costs only its own tokens, since the vocabulary is shared."""

# The fill-in-the-middle tokens of model families: before the prefix, before the suffix, before the answer.
_FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
)


class GenerationDefaults(msgspec.Struct, frozen=True):
    """The sampling parameters that a model's authors recommend; None: no recommendation."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


class ModelTokenizer:
    """The tokenizer of the base model in `directory`; `for_adapter` returns an adapter's.

    `eos_token_ids` come from generation_config.json and the tokenizer; `special_tokens` maps `bos_token`, `eos_token`
    and so on to their texts, as chat templates get them; `fingerprint` is the SHA-256 of tokenizer.json; `vocab_size`
    is the tokenizer's; `renamed_words` are an adapter's tokens that replace ordinary (not special) tokens of the base.
    Raises StartupError with the file that is missing or invalid.
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
        self._model_ids: Mapping[int, int] = {}  # library's id -> model's id, where an adapter renamed tokens
        # A file saved in training may set both; a prompt must not be cut or padded.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.pieces = TokenBytes(self._tokenizer, read_decoding(json.loads(data).get("decoder")))
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        config = _read_object(directory / "special_tokens_map.json") | _read_object(directory / "tokenizer_config.json")
        self.special_tokens = special_tokens(config)
        generation = _read_object(directory / "generation_config.json")
        # As in transformers, which derives a missing generation_config from config.json.
        configured = generation or _read_object(directory / "config.json")
        self.eos_token_ids = self._eos_token_ids(configured.get("eos_token_id"))
        self.generation = _generation_defaults(generation)
        self._adapters: OrderedDict[AdapterTokens, ModelTokenizer] = OrderedDict()
        self.base = self  # an adapter's tokenizer keeps the base model's here
        self.renamed_words: tuple[str, ...] = ()

    def for_adapter(self, tokens: AdapterTokens) -> ModelTokenizer:
        """The tokenizer of an adapter that changes `tokens`; takes about a millisecond.

        Its `eos_token_ids` are the base's and that of its own `eos_token`. Raises AdapterRefused if an id in `tokens`
        cannot be assigned.
        """
        if not tokens:
            return self
        if (tokenizer := self._adapters.get(tokens)) is None:
            tokenizer = self._adapters[tokens] = self._with_tokens(tokens)
            if len(self._adapters) > MAX_ADAPTER_TOKENIZERS:
                self._adapters.popitem(last=False)
        self._adapters.move_to_end(tokens)
        return tokenizer

    def _with_tokens(self, tokens: AdapterTokens) -> ModelTokenizer:
        other = copy.copy(self)
        other._adapters = OrderedDict()
        other.fingerprint = hashlib.sha256(self.fingerprint.encode() + msgspec.msgpack.encode(tokens)).hexdigest()
        if tokens.added:
            other._tokenizer, other._model_ids = adapter_tokenizer(self._tokenizer, tokens.added)
            other.pieces = self.pieces.renamed(tokens.added)
            ordinary = {token.id for token in tokens.added} - self.pieces.special_ids
            other.renamed_words = tuple(t.content for t in tokens.added if t.id in ordinary and self.pieces[t.id])
            other.vocab_size = max(self.vocab_size, *(token.id + 1 for token in tokens.added))
        special = {**self.special_tokens, **dict(tokens.special)}
        other.special_tokens = {name: text for name, text in special.items() if text is not None}
        other.eos_token_ids = other._eos_token_ids(list(self.eos_token_ids))
        return other

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of `text`; a special token's name in it becomes its id."""
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """The token ids of each text. Releases the GIL, so it can run in a thread."""
        # Only the library's batch functions release the GIL.
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [self._to_model_ids(encoding.ids) for encoding in encodings]

    def spans(self, text: str, *, add_special_tokens: bool) -> list[tuple[int, int, int]]:
        """(token id, start, stop) of each token of `text`, in characters. Special tokens have start == stop."""
        [encoding] = self._tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)  # as in encode_batch
        return [
            (id, start, stop)
            for id, (start, stop) in zip(self._to_model_ids(encoding.ids), encoding.offsets, strict=True)
        ]

    def fill_in_the_middle_ids(self) -> tuple[int, int, int] | None:
        """The ids of the tokens before the prefix, the suffix and the text between them; None if the model has none.

        Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", 2022.
        """
        for names in _FILL_IN_THE_MIDDLE:
            prefix, suffix, middle = map(self._id, names)
            if prefix is not None and suffix is not None and middle is not None:
                return prefix, suffix, middle
        return None

    def opening_ids(self) -> list[int]:
        """The ids that the tokenizer puts before every text: its beginning-of-text token, if it has one."""
        encoding = self._tokenizer.encode("a")
        return self._to_model_ids(encoding.ids)[: encoding.special_tokens_mask.index(0)]

    def may_fit(self, text: str, tokens: int) -> bool:
        """Whether `text` can have at most `tokens` tokens, estimated without tokenising it."""
        longest = tokens * self.pieces.longest
        return len(text) <= longest and len(text.encode()) <= longest

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, continued: bool = False) -> str:
        """The text of a whole sequence; the same as a Detokenizer's pieces.

        An unfinished character at the end becomes U+FFFD, or is left out if the text is `continued`.
        """
        detokenizer = Detokenizer(self.pieces, skip_special_tokens=skip_special_tokens)
        return "".join(map(detokenizer.push, ids)) + ("" if continued else detokenizer.flush())

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, which may be part of a character; a special token's name; b"" if unknown."""
        return self.pieces[token_id]

    def special_id(self, text: str) -> int | None:
        """The id of the special token whose name is `text`, if there is one."""
        token_id = self._id(text)
        return token_id if token_id in self.pieces.special_ids else None

    def _to_model_ids(self, ids: list[int]) -> list[int]:
        """Convert the library's ids to the model's."""
        return [self._model_ids.get(id, id) for id in ids] if self._model_ids else ids

    def _id(self, text: str) -> int | None:
        """The id of the token whose name is `text`, if there is one."""
        id: int | None = self._tokenizer.token_to_id(text)
        if id is None or id in self._model_ids:
            return None if id is None else self._model_ids[id]
        # The vocabulary still contains the former name of a token that an adapter renamed.
        return None if id in self._model_ids.values() else id

    def _eos_token_ids(self, configured: object) -> tuple[int, ...]:
        ids = [configured] if isinstance(configured, int) else configured
        if ids is not None and not (isinstance(ids, list) and all(isinstance(i, int) for i in ids)):
            raise StartupError(f"generation_config.json: eos_token_id {configured!r} is not a token id", param="model")
        eos_token = self.special_tokens.get("eos_token", "")
        eos_id = self._id(eos_token) if eos_token else None
        return tuple(dict.fromkeys([*(ids or ()), *(() if eos_id is None else (eos_id,))]))


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
        # json, not msgspec: these files may contain NaN or Infinity.
        value = {} if data is None else json.loads(data)
    except ValueError as error:
        raise StartupError(f"{path} is not JSON: {error}", param="model") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path} is not a JSON object", param="model")
    return value


def _generation_defaults(config: Mapping[str, Any]) -> GenerationDefaults:
    if not config.get("do_sample"):  # transformers then decodes greedily and ignores the other fields
        return GenerationDefaults()
    try:
        return msgspec.convert(dict(config), GenerationDefaults)
    except msgspec.ValidationError as error:
        raise StartupError(f"generation_config.json: {error}", param="model") from error
