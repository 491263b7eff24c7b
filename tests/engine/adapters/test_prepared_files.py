"""Prepared adapters on disk: damage is detected and repaired, and a full disk is reported."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from support.prepared_adapters import prepare, target_in
from support.tiny_adapters import adapter, write

from motet.core.errors import Unavailable
from motet.core.messages import PreparedAdapter
from motet.engine.adapters import prepared_files
from motet.engine.adapters.prepare import Target
from motet.engine.lora.adapter_installer import Installer
from motet.engine.lora.pool import LoraPool
from motet.engine.schedule.plan import InstallAdapter


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return target_in(tmp_path, shards=2)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", adapter())


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero_the_end(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-100] + bytes(100))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [empty, zero_the_end, cut, Path.unlink])
@pytest.mark.parametrize("name", ["adapter.json", "0.safetensors", "1.safetensors"])
def test_damage_is_repaired(source: Path, target: Target, name: str, damage: Callable[[Path], None]) -> None:
    first = prepare(source, target)
    home = Path(first.files[0]).parent
    whole = {path.name: path.read_bytes() for path in home.iterdir()}
    damage(home / name)
    assert prepare(source, target) == first
    assert {path.name: path.read_bytes() for path in home.iterdir()} == whole
    assert list(home.parent.iterdir()) == [home]


def test_what_is_whole_is_not_written_again(source: Path, target: Target) -> None:
    first = prepare(source, target)
    states = [Path(file).stat() for file in first.files]
    assert prepare(source, target) == first
    assert [Path(file).stat() for file in first.files] == states


def test_merges_have_a_folder_of_their_own(source: Path, target: Target) -> None:
    merged = prepare(source, target, 0.5, 0.25)
    assert Path(merged.files[0]).parent.parent == target.cache / "merged"
    assert prepare(source, target, 0.5, 0.25) == merged


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named(source: Path, target: Target, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(prepared_files, "save_file", fail)
    with pytest.raises(Unavailable, match="disk of the adapter cache is full") as caught:
        prepare(source, target)
    assert caught.value.code == "storage_full"
    assert list((target.cache / "prepared").iterdir()) == []


class RecordingPool(LoraPool):
    """Takes whatever it is given, and remembers the bytes of it."""

    def __init__(self) -> None:
        self.copied: list[set[str]] = []

    def clear(self, slot: int) -> None: ...

    def point(self, install: InstallAdapter) -> None: ...

    def copy(self, install: InstallAdapter, tensors: dict[str, torch.Tensor]) -> None:
        self.copied.append(set(tensors))


def install(installer: Installer, prepared: PreparedAdapter) -> str:
    installer.start(InstallAdapter(0, prepared.fingerprint, prepared.files, (), prepared.digests))
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        for report in installer.finish():
            return report.error
        time.sleep(0.01)
    raise TimeoutError


@pytest.mark.parametrize("damage", [empty, zero_the_end, cut])
def test_a_failed_install_has_the_adapter_prepared_again(
    source: Path, target: Target, damage: Callable[[Path], None]
) -> None:
    pool = RecordingPool()
    installer = Installer(pool, tp_rank=1)
    prepared = prepare(source, target)
    assert install(installer, prepared) == ""
    damage(Path(prepared.files[1]))
    assert install(installer, prepared)
    assert not Path(prepared.files[1]).exists()  # which the registry sees at the next request
    assert install(installer, prepare(source, target)) == ""
    assert len(pool.copied) == 2
