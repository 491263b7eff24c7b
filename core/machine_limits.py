"""The memory and CPUs that this process may use: the limits of the machine and of its cgroups (v1 and v2).

In a container, `os.sysconf` and `os.sched_getaffinity` report the whole machine; its limits are in its cgroup.
The limits of parent groups apply, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
SELF_CGROUPS = Path("/proc/self/cgroup")


def memory_bytes(root: Path = CGROUPS, cgroup_file: Path = SELF_CGROUPS) -> int:
    """Bytes of memory that this process and its siblings may use together."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        *_numbers(root, cgroup_file, "", "memory.max"),
        *_numbers(root, cgroup_file, "memory", "memory.limit_in_bytes"),
    ]
    return min([machine, *(limit for (limit,) in limits if limit > 0)])


def cpu_count(root: Path = CGROUPS, cgroup_file: Path = SELF_CGROUPS) -> int:
    """CPUs that this process may use, at least 1. Quotas are rounded down: kernel threads wait for the slowest."""
    quotas = [*_numbers(root, cgroup_file, "", "cpu.max"), *_cgroup_v1_quotas(root, cgroup_file)]
    shares = [quota // period for quota, period in quotas if quota > 0 and period > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *shares]))


def _cgroup_v1_quotas(root: Path, cgroup_file: Path) -> Iterator[tuple[int, int]]:
    for directory in _directories(root, cgroup_file, "cpu"):
        quota, period = (_read(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if len(quota) == len(period) == 1:
            yield quota[0], period[0]


def _numbers(root: Path, cgroup_file: Path, controller: str, name: str) -> Iterator[tuple[int, ...]]:
    """The numbers in the file `name` of this process's group and of its parents, without unlimited groups."""
    for directory in _directories(root, cgroup_file, controller):
        if numbers := _read(directory / name):
            yield numbers


def _directories(root: Path, cgroup_file: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's group and its parents, for a `controller` of cgroup v1, or "" for v2.

    In a container the path may be the host's, while the group itself is mounted at the root: the root is a parent.
    """
    try:
        lines = cgroup_file.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controller in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            for relative in (group, *group.parents):
                # v1: one directory per set of controllers, and links to it. v2: in unified/ where both are mounted.
                for mount in (root / controllers, root / controller) if controller else (root, root / "unified"):
                    yield mount / relative


def _read(path: Path) -> tuple[int, ...]:
    """A file's numbers; empty if the file is missing or contains `max`."""
    try:
        return tuple(map(int, path.read_text().split()))
    except (OSError, ValueError):
        return ()
