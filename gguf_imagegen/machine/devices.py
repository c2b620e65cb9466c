"""Devices that engines compute on: what `--devices` names, and what keeps a process to one of them."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

VISIBLE: Final[Mapping[str, str]] = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "hip": "HIP_VISIBLE_DEVICES",
    "vulkan": "GGML_VK_VISIBLE_DEVICES",
}
"""By kind of GPU: the variable with the numbers of those that a process may see."""
NONE_VISIBLE: Final[Mapping[str, str]] = {"cuda": "-1", "hip": "-1", "vulkan": ""}
"""HIP ignores an empty variable, and Vulkan's takes no -1."""
NAMES: Final[Mapping[str, str]] = {"CUDA": "cuda", "ROCm": "hip", "Vulkan": "vulkan"}
"""How ggml's names of GPUs begin, and their kind."""
NODES: Final = ("nvidia[0-9]*", "kfd", "dri/renderD*")
"""Device nodes under /dev; without one there is no GPU that the engine could find on Linux."""
NOWHERE: Final = ("none",)
"""`--devices` of a server whose pictures are made on other machines."""
CORES: Final = "GGUF_IMAGEGEN_WORKER_CORES"
"""The variable that tells a worker which cores are its own, comma-separated."""


@dataclass(frozen=True)
class Device:
    """`environment` and `cores` keep a process to this device; empty ones leave the choice to the engine.

    `gpu` is the one whose memory counts, as `machine.gpus` names it; None for main memory alone, which is
    also what GPUs without memory of their own use.
    """

    name: str = "auto"
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()
    gpu: str | None = "auto"

    @property
    def kind(self) -> str:
        """`cpu`, `cuda`, `hip`, `vulkan` or `auto`."""
        return self.name.partition(":")[0]

    def applied(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment of a worker on this device."""
        cores = {CORES: ",".join(map(str, self.cores))} if self.cores else {}
        return {**environment, **self.environment, **cores}


def check_names(names: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """ValueError, in words, unless these are what `--devices` takes and this environment lets us see."""
    for name in names:
        if not re.fullmatch(rf"auto|none|cpu|({'|'.join(VISIBLE)}):\d{{1,3}}", name):
            known = ", ".join(f"{kind}:0" for kind in VISIBLE)
            raise ValueError(f"{name!r} is not a device: use auto, cpu, or GPUs by number, e.g. {known}")
    if not names or ({"auto", "none"} & {*names} and len(names) > 1):
        raise ValueError("name devices, e.g. cuda:0,cuda:1, or auto alone, or none")
    if len(set(names)) < len(names):
        raise ValueError("name each device once; --cpu-lanes 2 makes two CPU lanes")
    for kind, number in (name.split(":") for name in names if ":" in name):
        seen = _seen(kind, environment)
        if seen and int(number) >= len(seen):
            words = (
                f"there is no {kind}:{number}: {VISIBLE[kind]} lets this program see {len(seen)} device(s)"
            )
            raise ValueError(words)


def make_devices(
    names: Sequence[str],
    cpu_lanes: int,
    threads: int,
    cores: int,
    environment: Mapping[str, str] = os.environ,
) -> tuple[Device, ...]:
    """A device for each lane; `cores` are the usable ones, `threads` are those of one lane, 0 = its share.

    A single lane has all cores, and one that is `auto` the engine's own choice of a device. `none` is for a
    server whose pictures are made elsewhere.
    """
    if tuple(names) == NOWHERE:
        return ()
    auto = tuple(names) == ("auto",)
    if auto and cpu_lanes == 1:
        return (Device(threads=threads or cores),)
    named = list(chain.from_iterable([_cpus(cpu_lanes) if n in ("auto", "cpu") else [n] for n in names]))
    share = threads or max(1, cores // len(named))
    pinned = iter(_shares(cpu_lanes) if cpu_lanes > 1 else [()])
    return tuple(
        Device(name, share, _only(""), next(pinned), None)
        if name.startswith("cpu")
        else _gpu(name, share, environment)
        for name in named
    )


def gpu_names(found: Sequence[Mapping[str, str]]) -> list[str]:
    """Names for `--devices` of the discrete GPUs that ggml found.

    Two backends may see the same GPU: only those of the first one's kind count.
    """
    kinds = [kind for each in found if each["kind"] == "gpu" and (kind := _kind(each["name"]))]
    return [f"{kinds[0]}:{number}" for number in range(kinds.count(kinds[0]))] if kinds else []


def has_gpu_node(dev: Path = Path("/dev")) -> bool:
    """Whether it is worth asking the engine for GPUs; without /dev's nodes only the engine can know."""
    return sys.platform == "win32" or any(next(dev.glob(pattern), None) for pattern in NODES)


def pin_to_cores(environment: Mapping[str, str] = os.environ) -> None:
    """Keep this process, and threads it starts from now on, to the cores that its environment names."""
    if CORES in environment and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in environment[CORES].split(",")})


def _cpus(count: int) -> list[str]:
    return ["cpu"] if count == 1 else [f"cpu:{number}" for number in range(count)]


def _shares(count: int) -> Iterator[tuple[int, ...]]:
    """Neighbouring cores for each of so many lanes; with more lanes than cores some share one."""
    if not hasattr(os, "sched_getaffinity"):
        yield from [()] * count
        return
    cores = sorted(os.sched_getaffinity(0))
    if count > len(cores):
        log.warning("%d CPU lanes share %d cores, which makes each picture slower", count, len(cores))
    for number in range(count):
        begin = number * len(cores) // count
        yield tuple(cores[begin : max(begin + 1, (number + 1) * len(cores) // count)])


def _kind(name: str) -> str | None:
    return next((kind for start, kind in NAMES.items() if name.startswith(start)), None)


def _only(kind: str, visible: str = "") -> dict[str, str]:
    return {variable: visible if each == kind else NONE_VISIBLE[each] for each, variable in VISIBLE.items()}


def _seen(kind: str, environment: Mapping[str, str]) -> list[str]:
    return [each.strip() for each in environment.get(VISIBLE[kind], "").split(",") if each.strip()]


def _gpu(name: str, threads: int, environment: Mapping[str, str]) -> Device:
    """Its number counts within what our own environment lets us see, and in NVIDIA's order."""
    kind, _, number = name.partition(":")
    seen = _seen(kind, environment)
    visible = seen[int(number)] if seen else number
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if kind == "cuda" else {}
    return Device(name, threads, {**_only(kind, visible), **order}, (), f"{kind}:{visible}")
