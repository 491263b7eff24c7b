"""`python -m motet.engine.adapters.check_worker`: checks whether the loader would accept adapters; writes nothing.

Reads a CheckRequest as JSON from stdin and writes a list of Verdict as JSON to stdout. `motet check` starts it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from motet.core.adapter_check import CheckRequest, Verdict
from motet.core.errors import StartupError
from motet.engine.adapters.loader import LoaderSpec, error_info, limit_memory, make_target

if TYPE_CHECKING:
    from motet.engine.adapters.prepare import Target


def check(directory: str, target: Target) -> Verdict:
    """Check whether the adapter in `directory` can be served."""
    from motet.engine.adapters.prepare import check_adapter

    try:
        return Verdict(directory, True, warnings=check_adapter(Path(directory), target))
    except Exception as error:
        info = error_info(error)
        return Verdict(directory, False, message=info.message, param=info.param)


def main() -> None:
    """Answer one request; exit code 2 with a line on stderr if the base model cannot be read."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=CheckRequest)
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        target = make_target(msgspec.convert(request.loader, LoaderSpec))
    except StartupError as error:
        print(f"motet: {error.message}", file=sys.stderr)
        raise SystemExit(2) from None
    limit_memory(target)
    verdicts = [check(directory, target) for directory in request.directories]
    sys.stdout.buffer.write(msgspec.json.encode(verdicts))


if __name__ == "__main__":
    main()
