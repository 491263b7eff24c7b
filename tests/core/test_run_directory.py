"""Run directories: what killed servers leave behind is removed by the next, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from motet.core.errors import StartupError
from motet.core.run_directory import PREFIX, RunDirectory, remove_leftovers

SERVER = """
import sys
from motet.core.run_directory import RunDirectory
directory = RunDirectory()
(directory.path / "socket").write_text("")
print(directory.path, flush=True)
sys.stdin.read()
"""


pytestmark = pytest.mark.usefixtures("temporary")


def test_a_killed_servers_directory_is_removed_and_a_running_ones_is_not(temporary: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        ours = RunDirectory()
        assert theirs.parent == ours.path.parent == temporary
        remove_leftovers()
        assert theirs.is_dir()
        assert ours.path.is_dir()
        other.kill()
        other.wait()
        remove_leftovers()
        assert not theirs.exists()
        assert ours.path.is_dir(), "this process lives"
    ours.remove()
    assert list(temporary.iterdir()) == []


def test_nothing_else_is_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = temporary / "elsewhere"
    target.mkdir()
    (temporary / f"{PREFIX}link").symlink_to(target)
    (temporary / f"{PREFIX}file").write_text("")
    (temporary / "motet-data-other").mkdir()
    before = sorted(temporary.iterdir())
    remove_leftovers()
    assert sorted(temporary.iterdir()) == before
    (temporary / f"{PREFIX}theirs").mkdir()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    remove_leftovers()
    assert (temporary / f"{PREFIX}theirs").is_dir(), "another user's"


@pytest.mark.parametrize("length", [60, 120])
def test_a_path_too_long_for_sockets_is_refused(temporary: Path, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    deep = Path(tempfile.mkdtemp(dir="/tmp", prefix="d" * (length - 20)))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    try:
        if length > 100:
            with pytest.raises(StartupError, match="TMPDIR"):
                RunDirectory()
        else:
            RunDirectory().remove()
        assert list(deep.iterdir()) == []
    finally:
        deep.rmdir()


def test_no_directory_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    with pytest.raises(StartupError, match="TMPDIR"):
        RunDirectory()
