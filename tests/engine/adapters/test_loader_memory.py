"""The loader's memory limit: an adapter that exceeds it fails, and the next one is prepared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support.tiny_adapters import adapter, write

PROGRAM = """
import sys
from pathlib import Path
import torch
from support.tiny_adapters import MODEL
from motet.core.messages import AdapterPart, PrepareAdapter, PreparedAdapter
from motet.engine.adapters import loader
from motet.engine.adapters.prepare import Target

place = Path(sys.argv[1])
target = Target(MODEL, "base", 1, torch.float32, 8, place / "cache", place / "model")
loader.limit_memory(target)
for allocate in (lambda: bytearray(4 << 30), lambda: torch.zeros(1 << 30), lambda: torch.ones(1 << 30)):
    try:
        allocate()
    except Exception as error:
        info = loader.error_info(error)
        assert (info.status, "more memory" in info.message) == (503, True), info
    else:
        raise AssertionError("there is no limit")
reply = loader.respond(PrepareAdapter("1", (AdapterPart(str(place / "a")),)), target)
assert isinstance(reply, PreparedAdapter), reply
"""


def test_too_much_memory_is_a_failure_of_one_adapter(tmp_path: Path) -> None:
    write(tmp_path / "a", adapter(), target_modules=".*_proj")
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=tests, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
