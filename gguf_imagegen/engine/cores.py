"""How many CPU cores this process may really use, which is often fewer than the machine has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


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
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = mount / "cpu" if controllers else mount
        folder = base / path.lstrip("/")
        while folder.is_relative_to(base):
            yield from _quota_v1(folder) if controllers else _quota_v2(folder)
            folder = folder.parent


def _quota_v2(folder: Path) -> Iterator[float]:
    match _read(folder / "cpu.max").split():
        case [quota, period] if quota != "max":
            yield int(quota) / int(period)


def _quota_v1(folder: Path) -> Iterator[float]:
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
