"""`local`: base models and adapters in local directories.

A base model is named by its directory. An adapter is `local:NAME`, looked up only under each `--adapter-root`.
"""

from __future__ import annotations

from pathlib import Path

from motet.core.adapter_source import AdapterSource
from motet.core.errors import StartupError
from motet.core.hookspecs import Register, hookimpl
from motet.core.model_source import ModelLocation, ModelSource
from motet.core.settings import Settings
from motet.plugins.sources.adapter_roots import AdapterRoots
from motet.plugins.sources.directories import DirectoryAdapters


class LocalAdapters(DirectoryAdapters):
    """The adapters under the `--adapter-root` directories; none without that setting."""

    def __init__(self) -> None:
        super().__init__("local", ())

    def configure(self, settings: Settings) -> None:
        """Read the roots from the settings. Raises StartupError for a root that is not a directory."""
        roots = tuple(Path(root).expanduser() for root in settings.adapter_root)
        self.roots = AdapterRoots(roots, settings.follow_links == "on")
        for root in roots:
            if not root.is_dir():
                raise StartupError(f"--adapter-root: {root} is not a directory", param="adapter_root")


class LocalModels(ModelSource):
    """A base model in a directory, in the layout of transformers."""

    def claims(self, ref: str) -> bool:
        """Whether `ref` is a directory or has the form of a path."""
        return ref.startswith(("/", "./", "../", "~")) or Path(ref).is_dir()

    def locate(self, ref: str) -> ModelLocation:
        """The directory `ref`. Raises StartupError if it is missing or has no model in safetensors."""
        directory = Path(ref).expanduser().resolve()
        if not directory.is_dir():
            raise StartupError(f"--model: there is no directory {directory}", param="model")
        if not (directory / "config.json").is_file():
            raise StartupError(f"--model: {directory} has no config.json, so it is not a model", param="model")
        if not any(directory.glob("*.safetensors")):
            raise StartupError(
                f"--model: {directory} has no *.safetensors; no other format is supported",
                param="model",
            )
        return ModelLocation(directory, "transformers", directory.name)


@hookimpl
def register_adapter_sources(register: Register[AdapterSource]) -> None:
    """Add `local`."""
    register("local", LocalAdapters())


@hookimpl
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add `local`."""
    register("local", LocalModels())
