"""The cache directory, directories built whole or not at all, and paths that stay in their roots."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from motet.core.paths import build_directory, cache_directory, inside, read_regular, write_file


def test_cache_directory_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MOTET_CACHE", raising=False)
    assert cache_directory() == tmp_path / ".cache" / "motet"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/motet")
    monkeypatch.setenv("MOTET_CACHE", "/own")
    assert cache_directory() == Path("/own")


def test_directory_is_built_once(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down" / "target"
    built = build_directory(target, lambda scratch: (scratch / "file").write_text("first") and None)
    assert built == target
    build_directory(target, lambda scratch: pytest.fail("the target is there already"))
    assert (target / "file").read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fill(scratch: Path) -> None:
        (scratch / "half").write_text("half")
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        build_directory(tmp_path / "target", fill)
    assert list(tmp_path.iterdir()) == []


def test_files_are_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content first, then the name, then the directory that has the name."""
    order: list[str] = []
    sync, rename, replace = os.fsync, Path.rename, os.replace

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".")[-1])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", lambda *names: order.append("rename") or rename(*names))
    monkeypatch.setattr(os, "replace", lambda *names: order.append("rename") or replace(*names))
    build_directory(tmp_path / "place" / "target", lambda scratch: (scratch / "content").write_text("x") and None)
    assert (order[0], order[2:]) == ("content", ["rename", "place"])
    order.clear()
    write_file(tmp_path / "place" / "file", b"first")
    write_file(tmp_path / "place" / "file", b"second")
    assert order[1:3] == ["rename", "place"]
    assert (tmp_path / "place" / "file").read_bytes() == b"second"
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["file", "target"]


def test_racing_builds_leave_one_complete_result(tmp_path: Path) -> None:
    target = tmp_path / "target"
    everybody_builds = threading.Barrier(4)
    results: list[Path] = []

    def build(number: int) -> None:
        def fill(scratch: Path) -> None:
            (scratch / "a").write_text(str(number))
            everybody_builds.wait(10)
            (scratch / "b").write_text(str(number))

        results.append(build_directory(target, fill))

    threads = [threading.Thread(target=build, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [target] * 4
    assert (target / "a").read_text() == (target / "b").read_text()
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_rename_without_a_race_is_raised(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def fill(scratch: Path) -> None:
        target.write_text("a file where the directory should go")

    with pytest.raises(OSError, match="target"):
        build_directory(target, fill)


def test_only_regular_files_of_a_limited_size_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    assert read_regular(tmp_path / "file", 4) == read_regular(tmp_path / "link", 4) == b"1234"
    with pytest.raises(ValueError, match="file has 4 bytes; the limit is 3"):
        read_regular(tmp_path / "file", 3)
    with pytest.raises(ValueError, match="fifo is not a regular file"):
        read_regular(tmp_path / "fifo", 3)
    with pytest.raises(ValueError, match="zero is not a regular file"):
        read_regular(Path("/dev/zero"), 3)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "absent", 3)
    (tmp_path / "directory").mkdir()
    with pytest.raises(ValueError, match="directory is not a regular file"):
        read_regular(tmp_path / "directory", 3)


@pytest.mark.parametrize("relative", ["", ".", "..", "../other", "a/../../other", "/etc", "link", "link/x", "a/../.."])
def test_paths_outside_their_root(tmp_path: Path, relative: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (root / "link").symlink_to(tmp_path / "other")
    assert inside(root, relative) is None


def test_paths_inside_their_root(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "a" / "b").mkdir(parents=True)
    (real / "link").symlink_to(real / "a")
    root = tmp_path / "root"
    root.symlink_to(real)
    assert inside(root, "a") == real / "a"
    assert inside(root, "a/./b/..") == real / "a"
    assert inside(root, "link/b") == real / "a" / "b"
    assert inside(root, "not/there/yet") == real / "not" / "there" / "yet"


@given(st.lists(st.sampled_from(["a", "..", ".", "b", "", "..."]), max_size=8))
def test_inside_never_returns_an_outside_path(parts: list[str]) -> None:
    root = Path("/nowhere/root")
    path = inside(root, "/".join(parts).lstrip("/"))
    assert path is None or root in path.parents
