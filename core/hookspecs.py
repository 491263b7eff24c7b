"""The hooks of Motet. Hooks register, objects work.

A plugin is any module or object with one or more of these functions, marked `@motet.core.hookspecs.hookimpl`.
Each is called once at start-up and hands its objects to `register(name, object)`. A name that is taken is an
error that names both plugins. Installed distributions are found by the entry point group `motet`.
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
    """What a hook is handed: call it once for each object."""

    def __call__(self, name: str, item: Kind) -> None:
        """Register `item` under `name`."""


@hookspec
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    """Add places that adapters come from.

    :param register: call as ``register("s3", source)``; requests then say ``s3:some/id``.
    """


@hookspec
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add places that base models come from.

    :param register: call as ``register("registry", source)``; the first source that claims ``--model`` serves
        it, plugins before built-ins.
    """


@hookspec
def register_chat_templates(register: Register[ChatTemplateFinder]) -> None:
    """Add places that chat templates come from.

    :param register: call as ``register("house", finder)``; finders are asked in turn, plugins before
        built-ins, and the first that answers wins.
    """


@hookspec
def register_output_formats(register: Register[OutputFormat]) -> None:
    """Add values of ``response_format.type``.

    :param register: call as ``register("yes_no", format)``.
    """


@hookspec
def register_tool_parsers(register: Register[ToolParser]) -> None:
    """Add ways in which models write tool calls.

    :param register: call as ``register("hermes", parser)``; ``--tool-parser`` names one, or else the first that
        claims the chat template is taken, plugins before built-ins.
    """
