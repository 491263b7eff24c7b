"""The output of `motet plugins`: for each hook, the registered names and the plugins that own them."""

from __future__ import annotations

from motet.core.plugin_registry import PluginRegistry


def plugin_table(plugins: PluginRegistry) -> str:
    """A table of hook, name and owner, one line per name, in the order in which the server tries them."""
    rows = [("HOOK", "NAME", "OWNER")]
    for hook, registry in plugins.registries():
        rows += [(hook, name, registry.owners[name]) for name in registry.items]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def print_plugins(plugins: PluginRegistry) -> None:
    """Print the table."""
    print(plugin_table(plugins))
