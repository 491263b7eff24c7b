"""Where the chat template of a directory is looked for, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from motet.core.errors import InvalidRequest
from motet.core.templates import MAX_TEMPLATE_BYTES, read_chat_template


def configure(directory: Path, template: object) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_a_directory_without_one(tmp_path: Path) -> None:
    assert read_chat_template(tmp_path) is None
    configure(tmp_path, None)
    assert read_chat_template(tmp_path) is None


def test_the_jinja_file_comes_first(tmp_path: Path) -> None:
    configure(tmp_path, "config")
    assert read_chat_template(tmp_path) == "config"
    (tmp_path / "chat_template.jinja").write_text("file é")
    assert read_chat_template(tmp_path) == "file é"


def test_of_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    configure(tmp_path, named)
    assert read_chat_template(tmp_path) == "plain"
    configure(tmp_path, named[:1])
    assert read_chat_template(tmp_path) is None


@pytest.mark.parametrize("template", [{"default": "x"}, 3, [{"name": "default", "template": 3}]])
def test_what_is_not_a_text_is_refused(tmp_path: Path, template: object) -> None:
    configure(tmp_path, template)
    with pytest.raises(InvalidRequest, match="not a text"):
        read_chat_template(tmp_path)


def test_size_and_form_are_checked(tmp_path: Path) -> None:
    configure(tmp_path, "x" * (MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(InvalidRequest, match="over 262144 bytes"):
        read_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InvalidRequest, match=r"tokenizer_config\.json is not JSON"):
        read_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match=r"chat_template\.jinja is not UTF-8"):
        read_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(InvalidRequest, match=r"chat_template\.jinja is over"):
        read_chat_template(tmp_path)
