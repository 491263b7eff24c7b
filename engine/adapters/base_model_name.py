"""Compares the base model that an adapter names with the one that is served; a difference is a warning only.

Many names mean one model: mirrors, quantised copies, directories. Shapes are what decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CACHE = re.compile(r"models--[\w.-]+?--([\w.-]+)", re.ASCII)
_CONVERTED = re.compile(r"-[0-9a-f]{16}-v\d+$")
"""What the cache adds to a GGUF file's name."""

_VARIANT = re.compile(r"([-_.](unsloth|bnb|4bit|8bit|[48]-bit|int[48]|gptq|awq|fp8|bf16|fp16|gguf|hf|i?q\d\w*))+$")
"""What stands for another form of the same weights."""


def base_model_warning(stated: object, names: Iterable[str]) -> str | None:
    """A warning if `stated`, of base_model_name_or_path, is a hub id of another model than those called `names`.

    A directory's name says nothing about the model in it, so only ids such as `org/name` are compared, without the
    organisation and without suffixes such as `-bnb-4bit`.
    """
    if not isinstance(stated, str) or not _HUB_ID.fullmatch(stated) or stated.startswith("."):
        return None
    known = sorted({name for name in map(_model_name, names) if name})
    if not known or _model_name(stated) in known:
        return None
    return (
        f"its adapter_config.json names {stated[:200]!r} as its base model, and this server's is {', '.join(known)}; "
        "if they differ, its answers will be wrong"
    )


def _model_name(name: str) -> str:
    """`org/Name-bnb-4bit`, a path or a cache's directory as the model's name alone."""
    cached = _CACHE.search(name)
    last = cached[1] if cached else _CONVERTED.sub("", PurePath(name).name)
    return _VARIANT.sub("", last.lower())
