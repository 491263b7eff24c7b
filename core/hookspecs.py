"""The plugin hooks. Each hook registers objects that implement an interface.

A plugin is a module or object with one or more of these functions, marked `@motet.core.hookspecs.hookimpl`.
Each hook is called once at startup and passes its objects to `register(name, object)`. If two plugins register the
same name, startup fails. Plugins in installed distributions are found through the entry point group `motet`.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import pluggy

from motet.core.adapter_source import AdapterSource
from motet.core.chat_template import ChatTemplateFinder
from motet.core.model_source import ModelSource
from motet.core.output_format import OutputFormat
from motet.core.tool_parser import ToolParser

PROJECT = "motet"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Kind = TypeVar("Kind", contravariant=True)


class Register(Protocol[Kind]):
    """The argument of every hook: call it once per object."""

    def __call__(self, name: str, item: Kind) -> None:
        """Register `item` under `name`."""


@hookspec
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    """Add adapter sources.

    :param register: call as ``register("s3", source)``; requests then use names such as ``s3:some/id``.
    """


@hookspec
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add base model sources.

    :param register: call as ``register("registry", source)``; the first source that claims ``--model`` is used,
        plugins before built-ins.
    """


@hookspec
def register_chat_templates(register: Register[ChatTemplateFinder]) -> None:
    """Add chat template finders.

    :param register: call as ``register("house", finder)``; the first finder that returns a template is used,
        plugins before built-ins.
    """


@hookspec
def register_output_formats(register: Register[OutputFormat]) -> None:
    """Add values of ``response_format.type``.

    :param register: call as ``register("yes_no", format)``.
    """


@hookspec
def register_tool_parsers(register: Register[ToolParser]) -> None:
    """Add tool parsers.

    :param register: call as ``register("hermes", parser)``; ``--tool-parser`` selects one. Without it, the first
        parser that claims the chat template is used, plugins before built-ins.
    """
