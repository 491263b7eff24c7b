"""The disk cache stays within its limit, and nothing that is in use leaves it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.scripted_registry import RegistrySetup, failure, run

from motet.api.adapters import disk_cache, merging
from motet.api.adapters.disk_cache import IN_USE_SECONDS, LEFTOVER_SECONDS, DiskCache, Loaded
from motet.core import disk_space
from motet.core.adapter_source import AdapterRef
from motet.core.errors import Overloaded
from motet.core.messages import PreparedAdapter

KB = 64 * 1024
A, B = AdapterRef("hub", "org/a"), AdapterRef("hub", "org/b")


def entry(root: Path, name: str, age: float, size: int = KB) -> Path:
    """An entry of the cache that was used `age` seconds ago."""
    path = root / name
    path.mkdir(parents=True)
    (path / "0.safetensors").write_bytes(bytes([1]) * size)
    os.utime(path, (time.time() - age,) * 2)
    return path


def left(root: Path) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in root.glob("*/*")}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[DiskCache]:
    cache = DiskCache(tmp_path, 3 * KB)
    yield cache
    cache.close()


def old(minutes: float) -> float:
    return IN_USE_SECONDS + 60 * minutes


def test_merges_leave_first_then_what_was_used_longest_ago(tmp_path: Path, cache: DiskCache) -> None:
    for name, age in (("prepared/a", 9), ("adapters/b", 8), ("prepared/c", 7), ("merged/d", 1), ("merged/e", 2)):
        entry(tmp_path, name, old(age))
    cache.trim()
    assert left(tmp_path) == {"adapters/b", "prepared/c"}  # within nine tenths of the limit
    entry(tmp_path, "prepared/f", old(1))
    cache.trim()
    assert left(tmp_path) == {"adapters/b", "prepared/c", "prepared/f"}


def test_what_is_in_use_stays(tmp_path: Path, cache: DiskCache) -> None:
    for number in range(9):
        entry(tmp_path, f"prepared/{number}", old(number))
    copy = entry(tmp_path, "adapters/copy", old(20))
    used = tmp_path / "prepared" / "8"
    prepared = PreparedAdapter("", "8", (str(used / "0.safetensors"),), (), KB)
    cache.use(Loaded(copy, prepared, copied=True))
    cache.close()
    assert left(tmp_path) == {"prepared/8", "adapters/copy"}


def test_files_outside_the_cache_are_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    cache = DiskCache(root, 0)
    theirs = entry(tmp_path, "theirs/adapter", old(1))
    before = theirs.stat().st_mtime_ns
    cache.use(Loaded(theirs, PreparedAdapter("", "x", (), (), 0)))
    entry(root, "models/base", old(9))
    entry(root, "prepared/x", old(9))
    cache.trim()
    cache.close()
    assert (theirs.stat().st_mtime_ns, left(root)) == (before, {"models/base"})


def test_leftovers_of_processes_that_died(tmp_path: Path) -> None:
    for folder in ("adapters", "prepared", "merged"):
        for name, age in ((".half.x", LEFTOVER_SECONDS + 60), (".young.y", 60)):
            scratch = entry(tmp_path, f"{folder}/{name}", age)
            os.utime(scratch / "0.safetensors", (time.time() - age,) * 2)
    growing = entry(tmp_path, "adapters/.growing.z", LEFTOVER_SECONDS + 60)  # its file is new
    cache = DiskCache(tmp_path)
    cache.make_room()
    cache.close()
    assert left(tmp_path) == {f"{folder}/.young.y" for folder in ("adapters", "prepared", "merged")} | {
        f"adapters/{growing.name}"
    }


def test_entries_that_other_processes_remove(tmp_path: Path, cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(9):
        entry(tmp_path, f"prepared/{number}", old(number))

    def vanish(prefix: str, dir: Path) -> str:
        for path in (tmp_path / "prepared").iterdir():
            (path / "0.safetensors").unlink()
            path.rmdir()
        (tmp_path / "scratch").mkdir()
        return str(tmp_path / "scratch")

    monkeypatch.setattr(disk_cache.tempfile, "mkdtemp", vanish)
    cache.trim()
    assert left(tmp_path) == set()


def test_the_limit_without_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DiskCache(tmp_path)
    for number in range(4):
        entry(tmp_path, f"prepared/{number}", old(number))
    monkeypatch.setattr(disk_space, "free_bytes", lambda root: 2 * KB)
    cache.trim()  # half of 4 + 2
    cache.close()
    assert left(tmp_path) == {"prepared/0", "prepared/1"}


def test_a_registry_keeps_its_cache_small(tmp_path: Path) -> None:
    async def body() -> None:
        entry(tmp_path, "adapters/old", old(1))
        s = RegistrySetup(tmp_path, cache_bytes=0)
        s.publish("org/a")
        served = await s.adapters.serve(A, None)
        await s.registry.close()
        assert list((tmp_path / "adapters").iterdir()) == [served.directory]

    run(body)


def test_new_merges_of_a_caller_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        s = RegistrySetup(tmp_path, merges_per_minute=3)
        s.publish("org/a")
        s.publish("org/b")

        async def merge(weight: float, owner: str = "alice") -> None:
            await s.adapters.serve_merged(((A, weight), (B, 1.0)), (None, None), owner)

        for weight in (0.1, 0.2, 0.3, 0.1, 0.2, 0.3):
            await merge(weight)
        error = await failure(merge(0.4))
        assert isinstance(error, Overloaded)
        assert (error.code, error.param) == ("rate_limit_exceeded", "merged_adapters")
        assert "3 new merges" in error.message
        await merge(0.3)
        await merge(0.4, "bob")
        await merge(0.4)  # which is there by now
        monkeypatch.setattr(merging, "MINUTE", 0.0)
        await merge(0.5)
        await s.registry.close()

    run(body)
