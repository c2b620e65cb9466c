"""The memory of GPUs, by what drivers and tools say of it.

A GPU is named as devices are (`cuda:0`, `cuda:GPU-8f2a`, `hip:1`, `vulkan:0`), `auto` for the one that an
engine would choose, or by its place on the bus (`pci:0000:03:00.0`), which is the same for every backend.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from gguf_imagegen.machine.cgroups import read_or_empty

NVIDIA_SMI: Final = (
    "nvidia-smi", "--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits", "-i",
)  # fmt: skip
NVIDIA: Final = "0x10de"
"""PCI's number of the vendor."""
TIMEOUT: Final = 3.0
"""Seconds for a tool to answer."""
LEAST_OWN: Final = 2 << 30
"""A GPU with less memory of its own borrows main memory, as those inside a CPU do: not known by its own."""


@dataclass(frozen=True)
class Vram:
    """Bytes; `free` is now."""

    free: int
    total: int


def located(gpu: str, root: Path = Path("/")) -> str:
    """The name by its place on the bus for GPUs that HIP or Vulkan count; as it is where that is not known.

    May ask `vulkaninfo`, which takes a part of a second.
    """
    kind, _, number = gpu.partition(":")
    if kind not in ("hip", "vulkan") or not number.isdecimal():
        return gpu
    places = _hip_places(root) if kind == "hip" else _vulkan_places()
    place = places.get(int(number))
    return gpu if place is None else f"pci:{place}"


def vram_of(gpu: str, root: Path = Path("/")) -> Vram | None:
    """What a GPU has; None where nobody says."""
    kind, _, rest = gpu.partition(":")
    match kind:
        case "cuda":
            return _nvidia(rest)
        case "pci":
            folder = root / "sys/bus/pci/devices" / rest
            is_nvidia = read_or_empty(folder / "vendor").strip() == NVIDIA
            return _nvidia(rest) if is_nvidia else _amd(folder)
        case "auto":
            return _nvidia("0") or _only_amd(root)
        case _:
            return None


def _hip_places(root: Path) -> dict[int, str]:
    """ROCm counts the nodes of the kernel's topology that have shader cores (KFD)."""
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("[0-9]*")
    found = []
    for node in sorted(nodes, key=lambda each: int(each.name)):
        rows = (row.split() for row in read_or_empty(node / "properties").splitlines())
        known = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}
        if known.get("simd_count"):
            domain, where = known.get("domain", 0), known.get("location_id", 0)
            found.append(f"{domain:04x}:{where >> 8:02x}:{where >> 3 & 31:02x}.{where & 7}")
    return dict(enumerate(found))


def _vulkan_places() -> dict[int, str]:
    """By the extension VK_EXT_pci_bus_info, in the order in which Vulkan counts."""
    with suppress(OSError, subprocess.SubprocessError):
        run = subprocess.run(("vulkaninfo",), capture_output=True, text=True, timeout=TIMEOUT, check=True)
        found = {}
        for gpu, text in re.findall(r"^GPU(\d+):\s*$(.*?)(?=^GPU\d+:\s*$|\Z)", run.stdout, re.S | re.M):
            place = dict(re.findall(r"^\s*pci(Domain|Bus|Device|Function)\s*=\s*(\d+)", text, re.M))
            if len(place) == 4:
                domain, bus, device, function = (
                    int(place[n]) for n in ("Domain", "Bus", "Device", "Function")
                )
                found[int(gpu)] = f"{domain:04x}:{bus:02x}:{device:02x}.{function}"
        return found
    return {}


def _amd(folder: Path) -> Vram | None:
    """By the driver amdgpu."""
    total, used = (read_or_empty(folder / f"mem_info_vram_{word}").strip() for word in ("total", "used"))
    if not total.isdecimal() or not used.isdecimal() or int(total) < LEAST_OWN:
        return None
    return Vram(max(0, int(total) - int(used)), int(total))


def _only_amd(root: Path) -> Vram | None:
    """Where there are several, nobody says which one an engine would choose."""
    cards = (root / "sys/class/drm").glob("card[0-9]*/device")
    found = [vram for card in cards if "-" not in card.parent.name and (vram := _amd(card))]
    return found[0] if len(found) == 1 else None


def _nvidia(gpu: str) -> Vram | None:
    """By its number, its UUID or its place on the bus."""
    with suppress(Exception):  # not installed, no driver, or a driver in a bad state: ask the tool
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        memory = nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, gpu))
        return Vram(int(memory.free), int(memory.total))
    with suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        run = subprocess.run((*NVIDIA_SMI, gpu), capture_output=True, text=True, timeout=TIMEOUT, check=True)
        free, total = run.stdout.splitlines()[0].split(",")
        return Vram(int(free) << 20, int(total) << 20)
    return None


def _handle(nvml: ModuleType, gpu: str) -> object:
    if gpu.isdecimal():
        return nvml.nvmlDeviceGetHandleByIndex(int(gpu))
    by_place = re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.\d", gpu)
    return nvml.nvmlDeviceGetHandleByPciBusId(gpu) if by_place else nvml.nvmlDeviceGetHandleByUUID(gpu)
