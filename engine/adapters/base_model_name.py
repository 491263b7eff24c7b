"""Warns if the base model in an adapter's config has another name than the served model.

Only a warning, since one model has many names: mirrors, quantised copies, directories. The shapes are checked strictly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_CACHE = re.compile(r"models--[\w.-]+?--([\w.-]+)", re.ASCII)
_CONVERTED = re.compile(r"-[0-9a-f]{16}-v\d+$")
"""The suffix that the cache adds to a GGUF file's name."""

_VARIANT = re.compile(r"([-_.](unsloth|bnb|4bit|8bit|[48]-bit|int[48]|gptq|awq|fp8|bf16|fp16|gguf|hf|i?q\d\w*))+$")
"""Suffixes for another format of the same weights."""


def base_model_warning(base_model: object, names: Iterable[str]) -> str | None:
    """A warning if base_model_name_or_path is a hub id of another model than those in `names`.

    A directory's name says nothing about the model in it, so only ids such as `org/name` are compared, without the
    organisation and without suffixes such as `-bnb-4bit`.
    """
    if not isinstance(base_model, str) or not _HUB_ID.fullmatch(base_model) or base_model.startswith("."):
        return None
    known = sorted({name for name in map(_model_name, names) if name})
    if not known or _model_name(base_model) in known:
        return None
    return (
        f"its adapter_config.json names {base_model[:200]!r} as its base model; the served model is "
        f"{', '.join(known)}; if they differ, its answers will be wrong"
    )


def _model_name(name: str) -> str:
    """The model's name only, from `org/Name-bnb-4bit`, a path or a cache directory."""
    cached = _CACHE.search(name)
    last = cached[1] if cached else _CONVERTED.sub("", PurePath(name).name)
    return _VARIANT.sub("", last.lower())
