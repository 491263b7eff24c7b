"""The interface of tool parsers: they describe tools to a model and read tool calls from its text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from motet.core.output_format import GrammarSpec


class Tool(msgspec.Struct, frozen=True):
    """A function that the model may call. `parameters` is a JSON schema of an object.

    With `raw_input`, the call has plain text instead of arguments: it matches this grammar and ends the answer.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    strict: bool = False
    raw_input: GrammarSpec | None = None


class CallPiece(msgspec.Struct, frozen=True):
    """A piece of the call with this `index` in the message: its start (`name` is set) or more of its arguments.

    `raw`: the arguments are the plain text of a tool's `raw_input`, not JSON.
    """

    index: int
    name: str | None = None
    arguments: str = ""
    raw: bool = False


class ToolReader(ABC):
    """Reads one answer in pieces of any length. Text that is not a call is returned as text."""

    @abstractmethod
    def push(self, text: str) -> list[str | CallPiece]:
        """The plain text and the pieces of calls that `text` completes, in order."""

    @abstractmethod
    def finish(self) -> list[str | CallPiece]:
        """At the end of the answer: everything that was held back."""


class ToolParser(ABC):
    """One format of tool calls."""

    markers: tuple[str, ...] = ()
    """Strings around calls that may be special tokens of a tokenizer: only the reader gets them."""

    @abstractmethod
    def claims(self, template: str) -> bool:
        """Whether a model with this chat template uses this format."""

    @abstractmethod
    def instructions(self, tools: Sequence[Tool]) -> str:
        """A description of the tools for the prompt, for chat templates without tool support."""

    @abstractmethod
    def call_text(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call, as the model would write it."""

    @abstractmethod
    def result_text(self, content: str) -> str:
        """A tool's result as a user message, for chat templates without tool support."""

    @abstractmethod
    def grammar(self, tools: Sequence[Tool], several: bool, special: Collection[str]) -> GrammarSpec:
        """A grammar for calls of `tools` (one, or several) only. `special`: the markers that are special tokens."""

    @abstractmethod
    def text_or_calls(self, tools: Sequence[Tool], special: Collection[str]) -> GrammarSpec:
        """A grammar for free text in which every call must be a valid call of `tools`."""

    @abstractmethod
    def reader(self, tools: Sequence[Tool]) -> ToolReader:
        """A reader for one answer. It returns calls of tools that are not in `tools` as text."""
