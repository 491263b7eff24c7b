"""A full disk: responses are still sent, errors say what is full, and deleting works."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import openai
import pytest
from openai import AsyncOpenAI
from support.batch_calls import drive
from support.scripted_server import Running

from motet.api.storage.files import FileStore

TESTS = Path(__file__).parents[2]


def can_mount() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k tmpfs /mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


@pytest.mark.skipif(not can_mount(), reason="this machine lets us mount nothing")
def test_a_disk_that_becomes_full(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    mounted = 'mount -t tmpfs -o size=5m tmpfs "$1/data" && exec "$2" -m support.full_disk "$1"'
    command = ["unshare", "-rm", "sh", "-c", mounted, "sh", str(tmp_path), sys.executable]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_an_upload_whose_file_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """A file on a disk that has no room."""

        def __init__(self, file: BinaryIO) -> None:
            self.file, self.name = file, file.name

        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.file.close()

    create = FileStore._create
    monkeypatch.setattr(FileStore, "_create", lambda store, path: Full(create(store, path)))

    async def scenario(client: AsyncOpenAI, server: Running) -> None:
        with pytest.raises(openai.InternalServerError) as full:
            await client.files.create(file=("a", b"x" * 5_000_000), purpose="user_data")
        assert (full.value.status_code, full.value.code) == (503, "storage_full")
        directory: Any = server.api.services.database.directory / "files"
        assert list(directory.iterdir()) == []

    drive(tmp_path, scenario)
