"""Chat templates: where the jinja text comes from that turns messages into a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import msgspec

MAX_TEMPLATE_BYTES = 256 * 1024


class TemplateContext(msgspec.Struct, frozen=True):
    """What a template finder may look at: the base model's directory and the adapter's, if one is named."""

    base_directory: Path
    adapter_directory: Path | None
    adapter_source: str | None
    adapter_id: str | None


class ChatTemplate(msgspec.Struct, frozen=True):
    """A jinja template (as transformers writes them) and who provides it (`adapter`, `base`, a plugin's name)."""

    text: str
    origin: str


class ChatTemplateFinder(ABC):
    """Knows one place where chat templates come from."""

    @abstractmethod
    def find(self, context: TemplateContext) -> ChatTemplate | None:
        """The template for this base and adapter, or None to let the next finder try."""
