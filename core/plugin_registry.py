"""The plugin registry: calls every hook once and stores the registered objects by kind and name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Generic, TypeVar

import pluggy

from motet.core import hookspecs
from motet.core.adapter_source import AdapterSource
from motet.core.chat_template import ChatTemplateFinder
from motet.core.errors import StartupError
from motet.core.model_source import ModelSource
from motet.core.output_format import OutputFormat
from motet.core.settings import Settings
from motet.core.tool_parser import ToolParser

DEFAULT_PLUGINS = (
    "motet.plugins.sources.hub",
    "motet.plugins.sources.local",
    "motet.plugins.sources.gguf",
    "motet.plugins.sources.smollm2",
    "motet.plugins.demo",
    "motet.plugins.chat_templates",
    "motet.plugins.output_formats",
    "motet.plugins.tool_parsers.hermes",
    "motet.plugins.tool_parsers.llama3_json",
)

T = TypeVar("T")


@dataclass
class Registry(Generic[T]):
    """The objects of one kind, by name, in the order in which they are tried (latest registered first)."""

    kind: str
    base: type[object]
    items: dict[str, T] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)

    def adder(self, owner: str) -> Callable[[str, T], None]:
        """The `register` function for one plugin. Raises StartupError for a duplicate name or a wrong type."""

        def register(name: str, item: T) -> None:
            if isinstance(item, type):
                raise StartupError(
                    f"plugin {owner} registers the class {item.__qualname__} as {self.kind} {name!r}; "
                    f"register an instance: register({name!r}, {item.__qualname__}())"
                )
            if not isinstance(item, self.base):
                raise StartupError(
                    f"plugin {owner} registers a {type(item).__qualname__} as {self.kind} {name!r}; "
                    f"expected an instance of {self.base.__module__}.{self.base.__qualname__}"
                )
            if name in self.items:
                raise StartupError(
                    f"plugins {self.owners[name]} and {owner} both register the {self.kind} {name!r}; "
                    "uninstall one of them"
                )
            self.items = {name: item, **self.items}
            self.owners[name] = owner

        return register


class PluginRegistry:
    """All objects registered by plugins. Usually created with `PluginRegistry.load()`."""

    def __init__(self) -> None:
        self.adapter_sources: Registry[AdapterSource] = Registry("adapter source", AdapterSource)
        self.model_sources: Registry[ModelSource] = Registry("model source", ModelSource)
        self.chat_templates: Registry[ChatTemplateFinder] = Registry("chat template", ChatTemplateFinder)
        self.output_formats: Registry[OutputFormat] = Registry("output format", OutputFormat)
        self.tool_parsers: Registry[ToolParser] = Registry("tool parser", ToolParser)
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def registries(self) -> tuple[tuple[str, Registry[object]], ...]:
        """Each hook's name with its registry."""
        return (
            ("register_adapter_sources", self.adapter_sources),  # type: ignore[return-value]
            ("register_model_sources", self.model_sources),
            ("register_chat_templates", self.chat_templates),
            ("register_output_formats", self.output_formats),
            ("register_tool_parsers", self.tool_parsers),
        )

    def add(self, plugin: object, owner: str) -> None:
        """Call every hook that `plugin` implements. Raises StartupError naming `owner` if it fails."""
        try:
            self._manager.register(plugin, name=owner)
            self._manager.check_pending()
            for hook, registry in self.registries():
                self._check_marked(plugin, hook, owner)
                for implementation in getattr(self._manager.hook, hook).get_hookimpls():
                    if implementation.plugin is plugin:
                        _call(implementation, registry.adder(owner), owner)
        except StartupError:
            raise
        except Exception as error:
            raise StartupError(f"plugin {owner} failed to register: {error!r}") from error

    def _check_marked(self, plugin: object, hook: str, owner: str) -> None:
        """Raise StartupError for a function that has a hook's name but is not marked as an implementation."""
        if callable(getattr(plugin, hook, None)) and self._manager.parse_hookimpl_opts(plugin, hook) is None:
            raise StartupError(
                f"plugin {owner}: {hook} is not marked; put @hookimpl above it (from motet import hookimpl)"
            )

    def configure(self, settings: Settings) -> None:
        """Configure every source. Raises StartupError naming the invalid setting or the plugin."""
        for registry in (self.adapter_sources, self.model_sources):
            for name, source in registry.items.items():
                try:
                    source.configure(settings)
                except StartupError:
                    raise
                except Exception as error:
                    owner = registry.owners[name]
                    raise StartupError(f"plugin {owner}: {registry.kind} {name!r}: {error!r}") from error

    @classmethod
    def load(cls, modules: Iterable[str] = DEFAULT_PLUGINS, *, installed: bool = True) -> PluginRegistry:
        """A registry with the built-ins and, unless `installed` is False, every installed plugin."""
        registry = cls()
        for module in modules:
            registry.add(importlib.import_module(module), module)
        if installed:
            for point in sorted(entry_points(group=hookspecs.PROJECT), key=lambda p: p.name):
                owner = f"{point.name} ({point.dist.name})" if point.dist else point.name
                try:
                    plugin = point.load()
                except Exception as error:
                    raise StartupError(f"plugin {owner} failed to import: {error!r}") from error
                registry.add(plugin, owner)
        return registry


def _call(implementation: pluggy.HookImpl, register: Callable[[str, object], None], owner: str) -> None:
    """Call one hook implementation; it may omit the argument. Raises StartupError for a wrapper."""
    if implementation.wrapper or implementation.hookwrapper:
        raise StartupError(f"plugin {owner}: hooks cannot be wrapped; mark the function with @hookimpl alone")
    implementation.function(*(register for _ in implementation.argnames))
