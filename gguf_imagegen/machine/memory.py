"""How much memory is free on this machine: main memory within the cgroups' limits, and a GPU's."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from gguf_imagegen.machine.cgroups import cgroup_folders, read_or_empty

HEADROOM = 0.1  # of what is free, left to others
_CGROUP = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", "-i")


@dataclass(frozen=True)
class Available:
    """Free bytes now; `vram` is None where it cannot be told."""

    ram: int
    vram: int | None = None

    @property
    def usable(self) -> Available:
        """What a model may take of it: the rest is left to others, and to the error of the estimate."""
        return Available(usable(self.ram), None if self.vram is None else usable(self.vram))


def available(root: Path = Path("/"), *, gpu: str | None = "0") -> Available:
    """Free memory now: main memory within the limits of this process's cgroups, and that of one GPU.

    `gpu` is its number as NVIDIA counts, or its UUID; None asks for none.
    """
    ram = min([psutil.virtual_memory().available, *_left_in_cgroups(root)])
    return Available(ram, None if gpu is None else _free_vram(gpu))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    """Limit less use, not counting files that can be dropped, of our cgroup and each above it."""
    for version, folder in cgroup_folders("memory", root):
        limit, used, files = _CGROUP[version]
        most, now = read_or_empty(folder / limit).strip(), read_or_empty(folder / used).strip()
        if most.isdecimal() and now.isdecimal():
            stat = read_or_empty(folder / "memory.stat")
            cached = dict(row.split()[:2] for row in stat.splitlines())
            yield max(0, int(most) - int(now) + int(cached.get(files, 0)))


def _free_vram(gpu: str) -> int | None:
    with suppress(Exception):  # not installed, no driver, or a driver in a bad state: ask the tool
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        return int(nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, gpu)).free)
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        run = subprocess.run((*NVIDIA_SMI, gpu), capture_output=True, text=True, timeout=3, check=True)
        return int(run.stdout.split()[0]) << 20
    return None


def _handle(nvml: ModuleType, gpu: str) -> object:
    if gpu.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(gpu))
    return nvml.nvmlDeviceGetHandleByUUID(gpu)


def usable(free: int) -> int:
    """The part of so many free bytes that a model may take."""
    return int(free * (1 - HEADROOM))
