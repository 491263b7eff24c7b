"""`adapter` and `base`: the chat template that an adapter or the base model brings along.

Looked for where transformers saves it: chat_template.jinja, chat_template.json, then tokenizer_config.json.
The text is only read here; another process renders it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec

from motet.core.chat_template_finder import MAX_TEMPLATE_BYTES, ChatTemplate, ChatTemplateFinder, TemplateContext
from motet.core.errors import AdapterRefused, MotetError
from motet.core.hookspecs import Register, hookimpl
from motet.core.paths import read_regular

MAX_JSON_BYTES = 8 << 20  # tokenizer_config.json lists every added token
FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


class _Named(msgspec.Struct):
    name: str
    template: str


class _HasTemplate(msgspec.Struct):
    chat_template: str | list[_Named] | None = None


class AdapterTemplate(ChatTemplateFinder):
    """The adapter's own template: a fine-tune may have learnt another one than its base."""

    def find(self, context: TemplateContext) -> ChatTemplate | None:
        """The template in the adapter's directory. Raises AdapterRefused when its file is broken."""
        if context.adapter_directory is None:
            return None
        try:
            text = template_in(context.adapter_directory)
        except ValueError as error:
            raise AdapterRefused(f"the adapter's chat template is broken: {error}", param="model") from error
        return None if text is None else ChatTemplate(text, "adapter")


class BaseTemplate(ChatTemplateFinder):
    """The base model's template."""

    def find(self, context: TemplateContext) -> ChatTemplate | None:
        """The template in the base model's directory. Raises MotetError when its file is broken."""
        try:
            text = template_in(context.base_directory)
        except ValueError as error:
            raise MotetError(f"the base model's chat template is broken: {error}") from error
        return None if text is None else ChatTemplate(text, "base")


def template_in(directory: Path) -> str | None:
    """The chat template that `directory` holds, or None. Raises ValueError naming the file that is broken."""
    for name in FILES:
        path = directory / name
        try:
            state = path.stat()
            text = _read(path, state.st_size, state.st_mtime_ns)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
        if text is not None:
            return text
    return None


@functools.lru_cache(maxsize=64)
def _read(path: Path, size: int, modified_ns: int) -> str | None:
    """The template in one file; its size and time are there to make a changed file a new cache entry."""
    plain = path.suffix == ".jinja"
    content = read_regular(path, MAX_TEMPLATE_BYTES if plain else MAX_JSON_BYTES)
    try:
        text = content.decode() if plain else _from_json(content)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if text is not None and len(text) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"the template in {path.name} has {len(text)} characters, which is too large")
    return text


def _from_json(content: bytes) -> str | None:
    template = msgspec.json.decode(content, type=_HasTemplate).chat_template
    if isinstance(template, list):
        return next((named.template for named in template if named.name == "default"), None)
    return template


@hookimpl
def register_chat_templates(register: Register[ChatTemplateFinder]) -> None:
    """Add `base`, and `adapter`, which is tried first since it is registered later."""
    register("base", BaseTemplate())
    register("adapter", AdapterTemplate())
