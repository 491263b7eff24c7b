"""Tools: describes functions to a model, and reads the calls that it writes back from its text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from motet.core.output_format import GrammarSpec


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters` is a JSON schema of an object.

    With `raw_input`, the call has no arguments but plain text that follows this grammar, up to the end of the answer.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    strict: bool = False
    raw_input: GrammarSpec | None = None


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of a call: the message's call number `index` begins (`name` is set), or its arguments go on.

    `raw`: the arguments are the plain text of a tool's `raw_input`, not JSON.
    """

    index: int
    name: str | None = None
    arguments: str = ""
    raw: bool = False


class ToolReader(ABC):
    """Reads one answer as it comes, however it is cut. Nothing is lost: text that is not a call is returned as text."""

    @abstractmethod
    def push(self, text: str) -> list[str | CallPiece]:
        """What the next piece of text completes: plain text, or pieces of calls, in order."""

    @abstractmethod
    def finish(self) -> list[str | CallPiece]:
        """What was held back, at the answer's end."""


class ToolParser(ABC):
    """One way in which models write calls."""

    markers: tuple[str, ...] = ()
    """Texts around calls that a tokenizer may have as special tokens: those reach the reader, and no one else."""

    @abstractmethod
    def claims(self, template: str) -> bool:
        """Whether a model with this chat template writes its calls this way."""

    @abstractmethod
    def instructions(self, tools: Sequence[Tool]) -> str:
        """What to tell a model of its tools whose chat template does not."""

    @abstractmethod
    def call_text(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as the model itself would have written it."""

    @abstractmethod
    def result_text(self, content: str) -> str:
        """A tool's result as a user's message, for chat templates that know no tools."""

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], several: bool, special: Collection[str]) -> GrammarSpec:
        """Calls of `tools` (one, or several) and nothing else. `special` are the markers that are special tokens."""

    @abstractmethod
    def text_or_calls(self, tools: Sequence[Tool], special: Collection[str]) -> GrammarSpec:
        """Free text in which each call, once begun, must be a valid one of `tools`."""

    @abstractmethod
    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """A reader for one answer. What looks like a call and is of none of `tools` is text."""
