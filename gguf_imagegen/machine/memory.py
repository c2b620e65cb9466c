"""How much memory is free on this machine: main memory within the cgroups' limits, and a GPU's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from gguf_imagegen.machine.cgroups import cgroup_folders, read_or_empty
from gguf_imagegen.machine.gpus import vram_of

HEADROOM = 0.1  # of what is free, left to others
_CGROUP = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


@dataclass(frozen=True)
class Available:
    """Free bytes now; `vram` is None where it cannot be told."""

    ram: int
    vram: int | None = None

    @property
    def usable(self) -> Available:
        """What a model may take of it: the rest is left to others, and to the error of the estimate."""
        return Available(usable(self.ram), None if self.vram is None else usable(self.vram))


def available(root: Path = Path("/"), *, gpu: str | None = "auto") -> Available:
    """Free memory now: main memory within the limits of this process's cgroups, and that of one GPU.

    `gpu` is named as in `machine.gpus`; None asks for none.
    """
    ram = min([psutil.virtual_memory().available, *_left_in_cgroups(root)])
    vram = None if gpu is None else vram_of(gpu, root)
    return Available(ram, vram.free if vram else None)


def whole(root: Path = Path("/"), *, gpu: str | None = "auto") -> Available:
    """As `available`, of memory in which nothing is."""
    ram = min([psutil.virtual_memory().total, *_limits_of_cgroups(root)])
    vram = None if gpu is None else vram_of(gpu, root)
    return Available(ram, vram.total if vram else None)


def _limits_of_cgroups(root: Path) -> Iterator[int]:
    for version, folder in cgroup_folders("memory", root):
        most = read_or_empty(folder / _CGROUP[version][0]).strip()
        if most.isdecimal():
            yield int(most)


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit less use, not counting files that can be dropped, of our cgroup and each above it."""
    for version, folder in cgroup_folders("memory", root):
        limit, used, files = _CGROUP[version]
        most, now = read_or_empty(folder / limit).strip(), read_or_empty(folder / used).strip()
        if most.isdecimal() and now.isdecimal():
            stat = read_or_empty(folder / "memory.stat")
            cached = dict(row.split()[:2] for row in stat.splitlines())
            yield max(0, int(most) - int(now) + int(cached.get(files, 0)))


def usable(free: int) -> int:
    """The part of so many free bytes that a model may take."""
    return int(free * (1 - HEADROOM))
