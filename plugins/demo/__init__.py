"""`demo`: three small adapters of the default base model that come with Motet.

Their files are package data, in adapters/; tests/training holds the texts and the script that made them.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from motet.core.adapters import AdapterSource
from motet.core.hookspecs import Register, hookimpl
from motet.plugins.directories import DirectoryAdapters

NAME = "demo"


@hookimpl
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    """Add `demo`."""
    register(NAME, DirectoryAdapters(NAME, [Path(str(files(__name__))) / "adapters"]))
