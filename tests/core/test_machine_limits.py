"""Memory and CPUs as cgroups limit them, from trees as containers see them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from motet.core.machine_limits import cpu_count, memory_bytes

GIB = 1 << 30
MACHINE = 64 * GIB
UNLIMITED = 9223372036854771712
"""What cgroup v1 says where there is no limit."""


@dataclass
class Tree:
    """A tree of cgroups, and which of them this process is in."""

    root: Path
    groups: Path

    def write(self, own: str, files: dict[str, str]) -> None:
        """Make the tree; `own` is the content of /proc/self/cgroup."""
        self.groups.write_text(own)
        for name, content in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")

    def found(self) -> tuple[int, int]:
        """(GiB of memory, CPUs)."""
        return memory_bytes(self.root, self.groups) // GIB, cpu_count(self.root, self.groups)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """A machine with 64 GiB and 16 CPUs."""
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": MACHINE // 4096}
    monkeypatch.setattr(os, "sysconf", sizes.__getitem__)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    return Tree(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("", {}, (64, 16)),
        # v2, as a container sees its own group
        ("0::/\n", {"memory.max": str(8 * GIB), "cpu.max": "400000 100000"}, (8, 4)),
        ("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}, (64, 16)),
        ("0::/\n", {"cpu.max": "50000 100000"}, (64, 1)),
        ("0::/\n", {"cpu.max": "250000 100000"}, (64, 2)),
        ("0::/\n", {"memory.max": str(256 * GIB), "cpu.max": "6400000 100000"}, (64, 16)),
        # v2 on the host: a systemd unit whose slice is limited
        (
            "0::/system.slice/motet.service\n",
            {
                "system.slice/memory.max": str(4 * GIB),
                "system.slice/motet.service/memory.max": "max",
                "system.slice/motet.service/cpu.max": "200000 100000",
            },
            (4, 2),
        ),
        # v1, as a container sees it: the host's path, and its own group at the root
        (
            "5:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            {
                "memory/memory.limit_in_bytes": str(2 * GIB),
                "cpu,cpuacct/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/cpu.cfs_period_us": "100000",
            },
            (2, 3),
        ),
        # v1 on the host, controllers by their links
        (
            "5:memory:/jobs/1\n3:cpu,cpuacct:/jobs/1\n",
            {
                "memory/memory.limit_in_bytes": str(UNLIMITED),
                "memory/jobs/1/memory.limit_in_bytes": str(16 * GIB),
                "cpu/jobs/1/cpu.cfs_quota_us": "800000",
                "cpu/jobs/1/cpu.cfs_period_us": "100000",
            },
            (16, 8),
        ),
        (
            "5:memory:/\n3:cpu:/\n",
            {
                "memory/memory.limit_in_bytes": str(UNLIMITED),
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
            (64, 16),
        ),
        # both versions are mounted
        ("1:name=systemd:/\n0::/unit\n", {"unified/unit/memory.max": str(3 * GIB)}, (3, 16)),
        ("nonsense\n0::/\n", {"memory.max": "many", "cpu.max": ""}, (64, 16)),
    ],
)
def test_limits(tree: Tree, own: str, files: dict[str, str], found: tuple[int, int]) -> None:
    tree.write(own, files)
    assert tree.found() == found


def test_affinity_counts(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    assert tree.found() == (64, 3)


def test_this_machine() -> None:
    assert memory_bytes() > 1 << 28
    assert cpu_count() >= 1
