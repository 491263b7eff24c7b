"""`adapter` and `base`: find the chat template of an adapter or of the base model.

Reads the files in which transformers saves it: chat_template.jinja, chat_template.json, then tokenizer_config.json.
Does not render: another process does.
"""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec

from motet.core.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate, ChatTemplateFinder, TemplateContext
from motet.core.errors import AdapterRefused, MotetError
from motet.core.hookspecs import Register, hookimpl
from motet.core.paths import read_regular

MAX_JSON_BYTES = 8 << 20  # tokenizer_config.json lists every added token
FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _TemplateFile(msgspec.Struct):
    chat_template: str | list[_NamedTemplate] | None = None


class AdapterTemplate(ChatTemplateFinder):
    """The adapter's template: a fine-tune may use a different template than its base model."""

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
    """The chat template in `directory`, or None. Raises ValueError naming the broken file."""
    for name in FILES:
        path = directory / name
        try:
            status = path.stat()
            text = _read(path, status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"{name} cannot be read: {error.strerror}") from error
        if text is not None:
            return text
    return None


@functools.lru_cache(maxsize=64)
def _read(path: Path, size: int, modified_ns: int) -> str | None:
    """The template in one file. `size` and `modified_ns` are part of the cache key: a changed file is read again."""
    plain = path.suffix == ".jinja"
    content = read_regular(path, MAX_TEMPLATE_BYTES if plain else MAX_JSON_BYTES)
    try:
        text = content.decode() if plain else _from_json(content)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if text is not None and len(text) > MAX_TEMPLATE_BYTES:
        raise ValueError(f"the template in {path.name} has {len(text)} characters; the maximum is {MAX_TEMPLATE_BYTES}")
    return text


def _from_json(content: bytes) -> str | None:
    template = msgspec.json.decode(content, type=_TemplateFile).chat_template
    if isinstance(template, list):
        return next((named.template for named in template if named.name == "default"), None)
    return template


@hookimpl
def register_chat_templates(register: Register[ChatTemplateFinder]) -> None:
    """Add `base` and `adapter`. The finder registered last, `adapter`, is tried first."""
    register("base", BaseTemplate())
    register("adapter", AdapterTemplate())
