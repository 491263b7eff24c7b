"""The interface of chat template finders, which find the Jinja template that turns messages into a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import msgspec

MAX_TEMPLATE_BYTES = 256 * 1024


class TemplateContext(msgspec.Struct, frozen=True):
    """The input of a finder: the base model's directory and, if the request has an adapter, the adapter."""

    base_directory: Path
    adapter_directory: Path | None
    adapter_source: str | None
    adapter_id: str | None


class ChatTemplate(msgspec.Struct, frozen=True):
    """A Jinja template, as transformers uses them, and where it is from (`adapter`, `base`, a plugin's name)."""

    text: str
    origin: str


class ChatTemplateFinder(ABC):
    """Finds chat templates in one place."""

    @abstractmethod
    def find(self, context: TemplateContext) -> ChatTemplate | None:
        """The template for this base and adapter, or None to try the next finder."""
