"""Directories that cannot be written and unknown models: startup fails with one line."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from motet.api.server.supervisor import check_directories, locate_model
from motet.core import paths
from motet.core.errors import StartupError
from motet.core.settings import Settings


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with an empty home directory, and nothing set."""
    for name in ("MOTET_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_directories_are_made(home: Path) -> None:
    check_directories(Settings())
    for directory in (home / ".cache" / "motet", home / ".local" / "share" / "motet"):
        assert list(directory.iterdir()) == []
        assert directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("variables", "data", "said"),
    [
        ({"MOTET_CACHE": "/dev/null"}, "", "the cache /dev/null cannot be used: .*; set MOTET_CACHE to"),
        ({"XDG_CACHE_HOME": "/proc/x"}, "", "the cache /proc/x/motet cannot be used: .*; set MOTET_CACHE to"),
        ({"XDG_DATA_HOME": "/proc/x"}, "", "the data directory /proc/x/motet cannot be used: .*; set --data-dir to"),
        ({}, "/dev/null", "the data directory /dev/null cannot be used: .*; set --data-dir to"),
        ({"HOME": "/proc/x"}, "/tmp", "the cache /proc/x/.cache/motet cannot be used"),
    ],
)
def test_what_cannot_be_written_into(
    variables: dict[str, str], data: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StartupError, match=said):
        check_directories(Settings(data_dir=data))


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(StartupError, match="cannot be used: No space left on device"):
        check_directories(Settings())


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(StartupError, match=r"the cache in the home directory cannot be used: .*; set MOTET_CACHE"):
        check_directories(Settings())


def test_an_unknown_model_is_answered_with_names_that_can_be_served() -> None:
    with pytest.raises(StartupError, match="--model weather: no such model") as caught:
        locate_model(Settings(model="weather"))
    names = caught.value.message.rpartition("one of: ")[2].split(", ")
    assert "smollm2" in names
    for name in names:
        locate_model(Settings(model=name))
