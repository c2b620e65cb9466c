"""How many CPU cores this process may really use, which is often fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gguf_imagegen.machine.cgroups import cgroup_folders, read_or_empty


def usable_cores(root: Path = Path("/")) -> int:
    """Cores of the affinity mask, bounded by the CPU quota of the cgroup (v1 or v2); at least 1.

    More threads than the quota pays for are slower than exactly that many: they are throttled together.
    """
    cores = _affinity()
    quota = min(_quotas(root), default=float(cores))
    return max(1, min(cores, int(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """The quota, in cores, of our cgroup and of each one above it that has one."""
    for version, folder in cgroup_folders("cpu", root):
        yield from _quota_v1(folder) if version == 1 else _quota_v2(folder)


def _quota_v2(folder: Path) -> Iterator[float]:
    match read_or_empty(folder / "cpu.max").split():
        case [quota, period] if quota != "max":
            yield int(quota) / int(period)


def _quota_v1(folder: Path) -> Iterator[float]:
    quota, period = read_or_empty(folder / "cpu.cfs_quota_us"), read_or_empty(folder / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        yield int(quota) / int(period)
