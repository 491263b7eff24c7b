"""What API processes ask the adapter registry, and what it answers: the same in one process and between several.

Name, Resolve, Serve, ServeMerged, ListAdapters ──> AdapterRegistry ──> each question's own answer, or a MotetError
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import msgspec

from motet.core.adapters import AdapterListing, AdapterRef, ResolvedAdapter
from motet.core.messages import PreparedAdapter

T = TypeVar("T")


class ServedAdapter(msgspec.Struct, frozen=True):
    """An adapter that may be used: what was asked for, its files, and what the loader made of them.

    Of merged adapters, `ref` and `directory` are the first one's, and so are its chat template and end-of-text ids.
    """

    ref: AdapterRef
    directory: Path
    prepared: PreparedAdapter


class Question(msgspec.Struct, Generic[T], frozen=True, tag=True):
    """A question whose answer is a T."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"  # some hold tokens


class Name(Question[AdapterRef], frozen=True):
    """Which adapter does `model`, which is not the base, name?"""

    model: str
    source: str | None


class Resolve(Question[ResolvedAdapter], frozen=True):
    """What is `ref` right now, if `token` may use it?"""

    ref: AdapterRef
    token: str | None


class Serve(Question[ServedAdapter], frozen=True):
    """Load `ref` for the caller with `token`, whose API key is `owner`'s."""

    ref: AdapterRef
    token: str | None
    owner: str = ""


class ServeMerged(Question[ServedAdapter], frozen=True):
    """Load the weighted sum of `parts` for the caller with `tokens`, one per part, whose API key is `owner`'s."""

    parts: tuple[tuple[AdapterRef, float], ...]
    tokens: tuple[str | None, ...]
    owner: str = ""


class ListAdapters(Question[tuple[AdapterListing, ...]], frozen=True):
    """Which adapters can be named up front?"""


AnyQuestion: TypeAlias = Name | Resolve | Serve | ServeMerged | ListAdapters


def answer_type(question: type[Question[Any]]) -> Any:
    """The type of a question's answer."""
    return get_args(question.__orig_bases__[0])[0]  # type: ignore[attr-defined]


encode = msgspec.msgpack.Encoder(enc_hook=str).encode
"""Any question or answer as msgpack; a Path becomes its text."""


def decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    """What reads `kind` from msgpack."""
    return msgspec.msgpack.Decoder(kind, dec_hook=lambda wanted, value: wanted(value))
