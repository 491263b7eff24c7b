"""The memory and CPUs that this process may use, as the machine and its cgroups limit them.

A container sees all of the machine's memory and CPUs in the usual places; what it may have of them is in its cgroup.
Both versions of cgroups are read. A group has at most what each of its parents has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def memory_bytes(root: Path = CGROUPS, groups: Path = OWN_GROUPS) -> int:
    """Bytes of memory that this process and its siblings may use together."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [*_numbers(root, groups, "", "memory.max"), *_numbers(root, groups, "memory", "memory.limit_in_bytes")]
    return min([machine, *(limit for (limit,) in limits if limit > 0)])


def cpu_count(root: Path = CGROUPS, groups: Path = OWN_GROUPS) -> int:
    """CPUs that this process may keep busy, at least 1. Of a quota of 2.5, 2: the kernels' threads work in step."""
    quotas = [*_numbers(root, groups, "", "cpu.max"), *_quotas_of_version_1(root, groups)]
    shares = [quota // period for quota, period in quotas if quota > 0 and period > 0]
    return max(1, min([len(os.sched_getaffinity(0)), *shares]))


def _quotas_of_version_1(root: Path, groups: Path) -> Iterator[tuple[int, int]]:
    for directory in _directories(root, groups, "cpu"):
        quota, period = (_read(directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        if len(quota) == len(period) == 1:
            yield quota[0], period[0]


def _numbers(root: Path, groups: Path, controller: str, name: str) -> Iterator[tuple[int, ...]]:
    """The numbers in the file `name` of this process's group and its parents; none where there is no limit."""
    for directory in _directories(root, groups, controller):
        if numbers := _read(directory / name):
            yield numbers


def _directories(root: Path, groups: Path, controller: str) -> Iterator[Path]:
    """The directories of this process's group and its parents: of cgroup v1's `controller`, or (empty) of v2.

    In a container the path may be the host's, while the container's own group is at the root: it is a parent here.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controller in controllers.split(","):
            group = PurePosixPath(path.lstrip("/"))
            for part in (group, *group.parents):
                # v1 has a directory for each set of controllers and links to it; v2 is beside them where both are used.
                for home in (root / controllers, root / controller) if controller else (root, root / "unified"):
                    yield home / part


def _read(path: Path) -> tuple[int, ...]:
    """A file's numbers; none if it is missing, or says `max`."""
    try:
        return tuple(map(int, path.read_text().split()))
    except (OSError, ValueError):
        return ()
