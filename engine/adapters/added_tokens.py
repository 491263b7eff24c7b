"""Reads the tokens that an adapter's tokenizer adds or renames, in the loader: no other process parses its files.

An adapter may name added tokens, with ids that the model has. Its ordinary vocabulary must be the base's: an adapter
trained with another one does not fit the base's embeddings, which adapters cannot change here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from motet.core.adapter_tokens import SPECIAL_TOKENS, AdapterTokens, AddedToken, special_tokens
from motet.core.errors import AdapterRefused
from motet.core.paths import read_regular

MAX_TOKENIZER_BYTES = 48 << 20
MAX_JSON_BYTES = 8 << 20
MAX_CHANGED = 1024
MAX_NAME = 256

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


class _Model(msgspec.Struct):
    vocab: dict[str, int] | list[tuple[str, float]]

    def names(self) -> Iterable[tuple[str, int]]:
        if isinstance(self.vocab, dict):
            return self.vocab.items()
        return ((name, id) for id, (name, _) in enumerate(self.vocab))


class _TokenizerFile(msgspec.Struct):
    model: _Model
    added_tokens: list[AddedToken] = []


class _Written(msgspec.Struct):
    """A token in tokenizer_config.json's added_tokens_decoder, where its id is the key."""

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class BaseTokens:
    """The base model's tokens, read from its directory when the first adapter with a tokenizer comes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @cached_property
    def _data(self) -> tuple[str, dict[int, str]]:
        data = (self._directory / "tokenizer.json").read_bytes()
        file = msgspec.json.decode(data, type=_TokenizerFile)
        names = {id: name for name, id in file.model.names()}
        return hashlib.sha256(data).hexdigest(), names | {token.id: token.content for token in file.added_tokens}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tokenizer.json."""
        return self._data[0]

    @property
    def names(self) -> dict[int, str]:
        """Id to token."""
        return self._data[1]

    @cached_property
    def special(self) -> Mapping[str, str]:
        """`bos_token` and so on with their texts."""
        return special_tokens(_config(self._directory))


def read_added_tokens(directory: Path, base: BaseTokens, vocab_size: int) -> AdapterTokens:
    """The differences between the tokenizer in an adapter's `directory` and `base`; empty without a tokenizer.

    Raises AdapterRefused with the file or token at fault: an id beyond the model's `vocab_size`, or a difference in the
    ordinary vocabulary.
    """
    if not any((directory / name).exists() for name in FILES):
        return AdapterTokens()
    config = _config(directory)
    data = _read(directory, "tokenizer.json", MAX_TOKENIZER_BYTES)
    own: list[AddedToken] = []
    if data is not None and hashlib.sha256(data).hexdigest() != base.fingerprint:
        own = _own_tokens(data, base, vocab_size)
    other_files = _listed(directory, config)
    if data is not None:
        # As in transformers, tokenizer.json takes precedence over the other files.
        names = base.names | {token.id: token.content for token in own}
        known = frozenset(names.values())
        other_files = [token for token in other_files if token.id not in names and token.content not in known]
    own += other_files
    pad = special_tokens(config).get("pad_token")
    changed = [token for token in own if base.names.get(token.id) != token.content]
    # Prompts and answers contain no padding.
    changed = [token for token in changed if token.content != pad or token.id < vocab_size]
    _check(changed, base, vocab_size)
    names = base.names | {token.id: token.content for token in changed}
    return AdapterTokens(tuple(changed), _special(config, base, frozenset(names.values())))


def _own_tokens(data: bytes, base: BaseTokens, vocab_size: int) -> list[AddedToken]:
    """The added tokens of tokenizer.json, whose other tokens are the base's."""
    file = _decode("tokenizer.json", data, _TokenizerFile)
    added = {token.id for token in file.added_tokens}
    for name, id in file.model.names():
        expected = base.names.get(id)
        if name == expected or id in added:
            continue
        if not 0 <= id < vocab_size:
            raise _beyond(id, name, vocab_size)
        raise AdapterRefused(
            f"the adapter's tokenizer.json: token {id} is {_shown(name)}, and the base model's is "
            f"{_shown(expected) if expected is not None else 'not in use'}; an adapter may rename added tokens only. "
            "Serve it with the base model that it was trained on"
        )
    return list({token.id: token for token in file.added_tokens}.values())


def _check(changed: list[AddedToken], base: BaseTokens, vocab_size: int) -> None:
    if len(changed) > MAX_CHANGED:
        raise AdapterRefused(
            f"the adapter's tokenizer has {len(changed)} tokens that the base model's lacks; the limit is {MAX_CHANGED}"
        )
    for token in changed:
        if not 0 <= token.id < vocab_size:
            raise _beyond(token.id, token.content, vocab_size)
        if not 0 < len(token.content) <= MAX_NAME:
            raise AdapterRefused(f"the adapter's tokenizer: token {token.id} must have 1 to {MAX_NAME} characters")
    replaced = {token.id for token in changed}
    places = {name: id for id, name in base.names.items() if id not in replaced}
    for token in changed:
        if places.setdefault(token.content, token.id) != token.id:
            raise AdapterRefused(
                f"the adapter's tokenizer has {_shown(token.content)} as token {token.id}, and as token "
                f"{places[token.content]}, too"
            )


def _beyond(id: int, name: str, vocab_size: int) -> AdapterRefused:
    return AdapterRefused(
        f"the adapter's tokenizer adds the token {_shown(name)} with id {id}, and the base model has ids 0 to "
        f"{vocab_size - 1}; train without new tokens, or serve a base model whose embeddings have them"
    )


def _shown(name: str) -> str:
    return repr(name[:64])


def _special(config: Mapping[str, Any], base: BaseTokens, names: frozenset[str]) -> tuple[tuple[str, str | None], ...]:
    """The special tokens that differ from the base's; texts that are not tokens are ignored."""
    found = special_tokens(config)
    texts = {name: found.get(name) or None for name in SPECIAL_TOKENS if name in config}
    return tuple(
        (name, text)
        for name, text in texts.items()
        if text != base.special.get(name) and (text is None or text in names)
    )


def _listed(directory: Path, config: Mapping[str, Any]) -> list[AddedToken]:
    """The added tokens in tokenizer_config.json and added_tokens.json; the former takes precedence."""
    found: dict[int, AddedToken] = {}
    if (data := _read(directory, "added_tokens.json", MAX_JSON_BYTES)) is not None:
        for name, id in _decode("added_tokens.json", data, dict[str, int]).items():
            found[id] = AddedToken(id, name)
    try:
        listed = msgspec.convert(config.get("added_tokens_decoder") or {}, dict[int, _Written], str_keys=True)
    except ValueError as error:
        raise AdapterRefused(f"the adapter's tokenizer_config.json: added_tokens_decoder: {error}") from error
    return list(
        (found | {id: AddedToken(id, **msgspec.structs.asdict(token)) for id, token in listed.items()}).values()
    )


def _config(directory: Path) -> dict[str, Any]:
    """special_tokens_map.json and tokenizer_config.json merged; the latter takes precedence."""
    merged: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (data := _read(directory, name, MAX_JSON_BYTES)) is None:
            continue
        try:
            value = json.loads(data)  # json, not msgspec: these files may say NaN or Infinity
        except (ValueError, RecursionError) as error:
            raise AdapterRefused(f"the adapter's {name} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise AdapterRefused(f"the adapter's {name} is not a JSON object")
        merged |= value
    return merged


def _read(directory: Path, name: str, limit: int) -> bytes | None:
    try:
        return read_regular(directory / name, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AdapterRefused(f"the adapter's {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise AdapterRefused(f"the adapter's {error}") from error


def _decode(name: str, data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise AdapterRefused(f"the adapter's {name}: {error}") from error
