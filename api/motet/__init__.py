"""The package `motet`: the public names of the library. Importing it loads none of them, only using them does.

`core/`, `plugins/`, `engine/` and `api/` are its subpackages `motet.core` and so on (pyproject.toml maps them).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from motet.core.adapter_source import AdapterListing, AdapterRef, AdapterSource, ResolvedAdapter
    from motet.core.blocking_calls import BlockingCalls
    from motet.core.chat_template import ChatTemplate, ChatTemplateFinder, TemplateContext
    from motet.core.errors import (
        AdapterRefused,
        Forbidden,
        InvalidRequest,
        MotetError,
        NotFound,
        Overloaded,
        SourceOffline,
        StartupError,
        Unauthenticated,
        Unavailable,
    )
    from motet.core.hookspecs import Register, hookimpl
    from motet.core.messages import AdapterPart, PreparedAdapter, TokenEvent
    from motet.core.model_source import ModelLocation, ModelSource
    from motet.core.output_format import GrammarSpec, OutputFormat
    from motet.core.paths import inside
    from motet.core.sampling_params import SamplingParams
    from motet.core.settings import Settings
    from motet.core.tool_parser import CallPiece, Tool, ToolParser, ToolReader
    from motet.engine.llm import Engine

__all__ = [
    "AdapterListing",
    "AdapterPart",
    "AdapterRef",
    "AdapterRefused",
    "AdapterSource",
    "BlockingCalls",
    "CallPiece",
    "ChatTemplate",
    "ChatTemplateFinder",
    "Engine",
    "Forbidden",
    "GrammarSpec",
    "InvalidRequest",
    "ModelLocation",
    "ModelSource",
    "MotetError",
    "NotFound",
    "OutputFormat",
    "Overloaded",
    "PreparedAdapter",
    "Register",
    "ResolvedAdapter",
    "SamplingParams",
    "Settings",
    "SourceOffline",
    "StartupError",
    "TemplateContext",
    "TokenEvent",
    "Tool",
    "ToolParser",
    "ToolReader",
    "Unauthenticated",
    "Unavailable",
    "__version__",
    "hookimpl",
    "inside",
]

__version__: str

# Module to the public names that it defines.
_MODULES = {
    "motet.core.adapter_source": ("AdapterListing", "AdapterRef", "AdapterSource", "ResolvedAdapter"),
    "motet.core.blocking_calls": ("BlockingCalls",),
    "motet.core.chat_template": ("ChatTemplate", "ChatTemplateFinder", "TemplateContext"),
    "motet.core.errors": (
        *("AdapterRefused", "Forbidden", "InvalidRequest", "MotetError", "NotFound", "Overloaded"),
        *("SourceOffline", "StartupError", "Unauthenticated", "Unavailable"),
    ),
    "motet.core.hookspecs": ("Register", "hookimpl"),
    "motet.core.messages": ("AdapterPart", "PreparedAdapter", "TokenEvent"),
    "motet.core.model_source": ("ModelLocation", "ModelSource"),
    "motet.core.output_format": ("GrammarSpec", "OutputFormat"),
    "motet.core.paths": ("inside",),
    "motet.core.sampling_params": ("SamplingParams",),
    "motet.core.settings": ("Settings",),
    "motet.core.tool_parser": ("CallPiece", "Tool", "ToolParser", "ToolReader"),
    "motet.engine.llm": ("Engine",),
}

# Type checkers see the imports above instead, so that they report a name that does not exist.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version  # takes 50 ms to load, and every process imports this package

            return version("motet")
        for module, names in _MODULES.items():
            if name in names:
                return getattr(importlib.import_module(module), name)
        raise AttributeError(f"module 'motet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
