"""The embedded database, opened by several processes at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OPEN = """
import asyncio, sys
from pathlib import Path
from motet.api.storage.database import Database
async def main():
    sys.stdin.readline()
    database = Database(Path(sys.argv[1]))
    await database.run(lambda connection: connection.execute("CREATE TABLE IF NOT EXISTS t (x)"))
    await database.close()
asyncio.run(main())
"""


def test_several_processes_may_open_it_first(tmp_path: Path) -> None:
    for attempt in range(4):
        command = [sys.executable, "-c", OPEN, str(tmp_path / str(attempt))]
        started = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(5)
        ]
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.communicate()[1] for process in started] == [""] * 5
