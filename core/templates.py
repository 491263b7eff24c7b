"""Chat templates: where the jinja text comes from that turns messages into a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import msgspec

from motet.core.errors import InvalidRequest

MAX_TEMPLATE_BYTES = 256 * 1024
_MAX_CONFIG_BYTES = 16 * 1024 * 1024


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


def read_chat_template(directory: Path) -> str | None:
    """The chat template of a model or adapter directory, as transformers looks for it; None if it has none.

    chat_template.jinja, else `chat_template` in tokenizer_config.json (a text, or a list of named ones of which
    `default` is taken). Raises InvalidRequest if one of them is too large or broken.
    """
    text = _read_text(directory / "chat_template.jinja", MAX_TEMPLATE_BYTES)
    if text is None:
        config = _read_text(directory / "tokenizer_config.json", _MAX_CONFIG_BYTES)
        text = None if config is None else _configured_template(config)
    if text is not None and len(text.encode()) > MAX_TEMPLATE_BYTES:
        raise InvalidRequest(f"the chat template is over {MAX_TEMPLATE_BYTES} bytes", param="model")
    return text


def _read_text(path: Path, limit: int) -> str | None:
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        text = data.decode()
    except OSError as error:
        raise InvalidRequest(f"{path.name}: {error.strerror}", param="model") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path.name} is not UTF-8", param="model") from error
    if len(data) > limit:
        raise InvalidRequest(f"{path.name} is over {limit} bytes", param="model")
    return text


def _configured_template(config: str) -> str | None:
    try:
        parsed: Any = msgspec.json.decode(config)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"tokenizer_config.json is not JSON: {error}", param="model") from error
    template = parsed.get("chat_template") if isinstance(parsed, dict) else None
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    if template is not None and not isinstance(template, str):
        raise InvalidRequest("tokenizer_config.json: chat_template is not a text", param="model")
    return template
