"""Adapter files between hosts: fetched once, checked, limited, and only prepared ones."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.host_groups import KEY, OTHER_KEY, free_ports

from motet.core.digests import digest
from motet.engine.distributed import shipped_files
from motet.engine.distributed.host_key import HostKey
from motet.engine.distributed.shipped_files import FileServer, ShippedFiles

LIMIT = 1 << 20


class Hosts:
    """The first host's cache and file server, and another host's cache."""

    def __init__(self, directory: Path) -> None:
        self.first, self.other = directory / "first", directory / "other"
        self.address = f"tcp://127.0.0.1:{free_ports()}"
        self.server = FileServer(self.address, HostKey(KEY), self.first)

    def prepared(self, content: bytes, fingerprint: str = "ab" * 16) -> Path:
        """A prepared file of the first host, by a path that exists only for the server, which resolves it."""
        path = self.first / "prepared" / fingerprint / "1.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return self.first / "absent" / ".." / "prepared" / fingerprint / path.name

    def access(self, key: str = KEY, limit: int | None = None) -> ShippedFiles:
        """The other host's access."""
        return ShippedFiles(self.address, HostKey(key), self.other, limit)

    def kept(self) -> list[str]:
        """The names in the other host's cache, unfinished files too."""
        return sorted(path.name for path in (self.other / "shipped").iterdir())


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts without a shared disk."""
    made = Hosts(tmp_path)
    yield made
    made.server.close()


def test_a_file_is_fetched_once(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_files, "CHUNK_BYTES", 1000)
    content = os.urandom(2500)
    path, access = hosts.prepared(content), hosts.access()
    found = access.locate(path, digest(content), LIMIT)
    assert found == hosts.other / "shipped" / f"{digest(content)}.safetensors"
    assert found.read_bytes() == content
    path.resolve().unlink()
    assert access.locate(path, digest(content), LIMIT) == found, "the first host is not asked again"
    assert hosts.kept() == [found.name]


def test_a_shared_disk_needs_no_copy(hosts: Hosts) -> None:
    path = hosts.prepared(b"content").resolve()
    assert hosts.access().locate(path, digest(b"content"), LIMIT) == path
    assert not hosts.other.exists()


def test_a_damaged_file_is_removed_on_the_first_host(hosts: Hosts) -> None:
    path = hosts.prepared(b"other content")
    with pytest.raises(ValueError, match="damaged on the first host"):
        hosts.access().locate(path, digest(b"content"), LIMIT)
    deadline = time.monotonic() + 5
    while path.resolve().exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not path.resolve().exists(), "the next request has it prepared again"
    assert hosts.kept() == []


def test_a_wrong_report_removes_nothing(hosts: Hosts) -> None:
    path = hosts.prepared(b"content")
    hosts.server._check(shipped_files.DamagedFile(str(path), digest(b"content")))
    assert path.resolve().exists()


def test_a_file_above_the_limit_is_refused(hosts: Hosts) -> None:
    path = hosts.prepared(b"content")
    with pytest.raises(ValueError, match="has 7 bytes; the limit is 6"):
        hosts.access().locate(path, digest(b"content"), 6)
    assert hosts.kept() == []


@pytest.mark.parametrize("name", ["../secret", "prepared/x/1.safetensors", "absent/../secret"])
def test_only_prepared_files_are_sent(hosts: Hosts, name: str) -> None:
    hosts.prepared(b"content")
    for secret in (hosts.first.parent / "secret", hosts.first / "secret"):
        secret.write_text("secret")
    with pytest.raises(FileNotFoundError, match="the first host cannot read"):
        hosts.access().locate(hosts.first / "absent" / ".." / name, digest(b"secret"), LIMIT)


def test_a_peer_without_the_key_gets_no_file(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_files, "ANSWER_SECONDS", 0.5)
    path = hosts.prepared(b"content")
    with pytest.raises(TimeoutError):
        hosts.access(OTHER_KEY).locate(path, digest(b"content"), LIMIT)
    assert hosts.kept() == []


def test_the_least_recently_used_files_are_removed(hosts: Hosts) -> None:
    access = hosts.access(limit=250)
    contents = [bytes([number]) * 100 for number in range(3)]
    paths = [hosts.prepared(content, f"{number}" * 32) for number, content in enumerate(contents)]
    found = [access.locate(path, digest(content), LIMIT) for path, content in zip(paths[:2], contents, strict=False)]
    for age, file in ((200, found[1]), (100, found[0])):
        os.utime(file, (time.time() - age,) * 2)
    newest = access.locate(paths[2], digest(contents[2]), LIMIT)
    assert hosts.kept() == sorted([found[0].name, newest.name])
