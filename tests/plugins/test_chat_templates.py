"""Chat templates are found where transformers saves them, the adapter's before the base's."""

import json
import os
from pathlib import Path

import pytest

from motet.core.chat_template import MAX_TEMPLATE_BYTES, ChatTemplate, TemplateContext
from motet.core.errors import AdapterRefused
from motet.core.plugin_registry import PluginRegistry
from motet.plugins.chat_templates import template_in


def found(base: Path, adapter: Path | None) -> ChatTemplate | None:
    """The first answer of the finders, in the registry's order."""
    finders = PluginRegistry.load(["motet.plugins.chat_templates"], installed=False).chat_templates.items
    assert list(finders) == ["adapter", "base"]
    context = TemplateContext(base, adapter, "demo" if adapter else None, "pirate" if adapter else None)
    return next(filter(None, (finder.find(context) for finder in finders.values())), None)


def test_the_adapters_own_template_comes_first(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    assert found(base, adapter) is None
    (base / "chat_template.jinja").write_text("base's")
    assert found(base, adapter) == found(base, None) == ChatTemplate("base's", "base")
    (adapter / "tokenizer_config.json").write_text('{"chat_template": null}')
    assert found(base, adapter) == ChatTemplate("base's", "base")
    (adapter / "chat_template.jinja").write_text("adapter's")
    assert found(base, adapter) == ChatTemplate("adapter's", "adapter")
    assert found(base, None) == ChatTemplate("base's", "base")


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("one")
    assert template_in(tmp_path) == "one"
    (tmp_path / "chat_template.jinja").write_text("another")
    assert template_in(tmp_path) == "another"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "T"),
        ("chat_template.json", '{"chat_template": "T"}'),
        ("tokenizer_config.json", '{"chat_template": "T", "eos_token": {"content": "</s>"}}'),
        ("tokenizer_config.json", json.dumps({"chat_template": [{"name": "tool_use", "template": "U"},
                                                                 {"name": "default", "template": "T"}]})),
    ],
)  # fmt: skip
def test_every_place_that_transformers_uses(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert template_in(tmp_path) == "T"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"x" * (MAX_TEMPLATE_BYTES + 1)),
        ("chat_template.json", b'{"chat_template": "' + b"x" * (MAX_TEMPLATE_BYTES + 1) + b'"}'),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"chat_template": 3}'),
        ("tokenizer_config.json", b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ],
)
def test_a_broken_template_is_refused_and_its_file_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdapterRefused, match=name):
        found(tmp_path / "base", tmp_path)


def test_a_template_file_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "chat_template.jinja")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not a regular file"):
        template_in(tmp_path)
