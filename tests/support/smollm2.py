"""The default model for tests, converted into the user's cache as `motet serve` does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from motet.core.paths import cache_directory
from motet.engine.models.convert_gguf import converted_directory
from motet.plugins.sources.smollm2 import Smollm2


def smollm2_directory() -> Path:
    """The converted directory; converts the model first if necessary (in a separate process, since that warns)."""
    location = Smollm2().locate("smollm2")
    target = converted_directory(location.path, cache_directory())
    if not target.is_dir():
        command = [sys.executable, "-m", "motet.engine.models.convert_gguf", str(location.path), str(cache_directory())]
        subprocess.run(command, check=True)
    return target
