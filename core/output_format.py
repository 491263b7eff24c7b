"""The interface of output formats: each is a grammar that the engine enforces token by token."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

import msgspec


class GrammarSpec(msgspec.Struct, frozen=True):
    """A grammar as a string: a JSON schema, a grammar in llguidance's Lark dialect, or a regex."""

    kind: Literal["json_schema", "lark", "regex"]
    text: str


class OutputFormat(ABC):
    """One value of `response_format.type`."""

    @abstractmethod
    def grammar(self, response_format: Mapping[str, object]) -> GrammarSpec | None:
        """The grammar for the request's `response_format` object; None for free text.

        Raises InvalidRequest naming the invalid field.
        """


def escape_for_lark(pattern: str) -> str:
    """The regex, escaped for a Lark terminal: the part between the slashes."""
    escaped = {"/": "\\/", "\n": "\\n"}
    return re.sub(r"\\.|/|\n", lambda match: escaped.get(match[0], match[0]), pattern, flags=re.DOTALL)
