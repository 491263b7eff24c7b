"""The order in which registered objects are tried, and which functions of a plugin are called."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from motet.core.errors import StartupError
from motet.core.hookspecs import Register, hookimpl
from motet.core.output_format import OutputFormat
from motet.core.plugin_registry import PluginRegistry


class Free(OutputFormat):
    def grammar(self, response_format: Mapping[str, object]) -> None: ...


def plugin(*names: str) -> SimpleNamespace:
    """A plugin that registers output formats called `names`."""

    def register_output_formats(register: Register[OutputFormat]) -> None:
        for name in names:
            register(name, Free())

    return SimpleNamespace(register_output_formats=hookimpl(register_output_formats))


def test_the_latest_registered_object_is_tried_first() -> None:
    registry = PluginRegistry()
    registry.add(plugin("first", "second"), "built-in")
    registry.add(plugin("third"), "installed")
    assert list(registry.output_formats.items) == ["third", "second", "first"]
    assert registry.output_formats.owners == {"first": "built-in", "second": "built-in", "third": "installed"}


def test_a_function_is_called_for_its_specname_and_not_for_its_own_name() -> None:
    def register_tool_parsers(register: Register[OutputFormat]) -> None:
        register("renamed", Free())

    marked = hookimpl(specname="register_output_formats")(register_tool_parsers)
    registry = PluginRegistry()
    registry.add(SimpleNamespace(register_tool_parsers=marked), "renaming")
    assert list(registry.output_formats.items) == ["renamed"]
    assert not registry.tool_parsers.items


def test_one_plugin_may_implement_a_hook_twice() -> None:
    other = hookimpl(specname="register_output_formats")(lambda register: register("other", Free()))
    both = plugin("named")
    both.more_formats = other
    registry = PluginRegistry()
    registry.add(both, "twice")
    assert sorted(registry.output_formats.items) == ["named", "other"]


def test_an_unmarked_function_with_a_hooks_name_is_refused() -> None:
    unmarked = SimpleNamespace(register_output_formats=lambda register: register("never", Free()))
    with pytest.raises(StartupError, match="register_output_formats is not marked; put @hookimpl above it"):
        PluginRegistry().add(unmarked, "careless")
