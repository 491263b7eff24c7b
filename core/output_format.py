"""Output formats: what may come out of a request, as a grammar that the engine enforces token by token."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import msgspec


class GrammarSpec(msgspec.Struct, frozen=True):
    """A grammar as plain text: `json_schema` is a JSON schema, `lark` llguidance's Lark, `regex` a regex."""

    kind: Literal["json_schema", "lark", "regex"]
    text: str


class OutputFormat(ABC):
    """One value of `response_format.type`."""

    @abstractmethod
    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec | None:
        """The grammar for this request's `response_format` object; None leaves the text free.

        Raises InvalidRequest naming the field that is wrong.
        """


def slashed(pattern: str) -> str:
    """A regex as Lark has it between slashes."""
    written = {"/": "\\/", "\n": "\\n"}
    return re.sub(r"\\.|/|\n", lambda found: written.get(found[0], found[0]), pattern, flags=re.DOTALL)
