"""The memory of GPUs, from folders and tools as drivers leave them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_imagegen.machine.gpus import Vram, located, vram_of

pytestmark = pytest.mark.posix

GB = 1 << 30
SUMMARY = """\
GPU0:
VkPhysicalDeviceProperties:
---------------------------
\tdeviceName        = AMD Radeon RX 7900 XTX (RADV NAVI31)
VkPhysicalDevicePCIBusInfoPropertiesEXT:
----------------------------------------
\tpciDomain   = 0
\tpciBus      = 12
\tpciDevice   = 0
\tpciFunction = 0
GPU1:
VkPhysicalDeviceProperties:
---------------------------
\tdeviceName        = llvmpipe (LLVM 19.1.7, 256 bits)
GPU2:
VkPhysicalDevicePCIBusInfoPropertiesEXT:
----------------------------------------
\tpciDomain   = 0
\tpciBus      = 3
\tpciDevice   = 0
\tpciFunction = 0
"""


def card(root: Path, number: int, place: str, used: int, total: int, vendor: str = "0x1002") -> None:
    """A GPU under amdgpu, as sysfs shows it by its place on the bus and by its number."""
    device = root / "sys/bus/pci/devices" / place
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "mem_info_vram_used").write_text(f"{used}\n")
    (device / "mem_info_vram_total").write_text(f"{total}\n")
    drm = root / "sys/class/drm"
    (drm / f"card{number}").mkdir(parents=True)
    (drm / f"card{number}-DP-1").mkdir()
    (drm / f"card{number}" / "device").symlink_to(device)


def node(root: Path, number: int, text: str) -> None:
    """A node of the kernel's topology of things that compute."""
    folder = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
    folder.mkdir(parents=True)
    (folder / "properties").write_text(text)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that is searched first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    return folder


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_hip_counts_nodes_with_shaders(tmp_path: Path) -> None:
    """The CPU's node is none of them, and ten comes after two."""
    node(tmp_path, 0, "cpu_cores_count 16\nsimd_count 0\nlocation_id 0\ndomain 0\n")
    node(tmp_path, 10, "simd_count 192\nlocation_id 3072\ndomain 0\n")
    node(tmp_path, 2, "simd_count 240\nlocation_id 778\ndomain 1\n")
    assert [located(f"hip:{number}", tmp_path) for number in range(3)] == [
        "pci:0001:03:01.2", "pci:0000:0c:00.0", "hip:2",
    ]  # fmt: skip
    card(tmp_path, 0, "0000:0c:00.0", used=5 * GB, total=24 * GB)
    assert vram_of(located("hip:1", tmp_path), tmp_path) == Vram(19 * GB, 24 * GB)
    assert vram_of("hip:2", tmp_path) is None


def test_vulkan_tells_places(tools: Path, tmp_path: Path) -> None:
    """In its own order, in which programs without a place count too; without the tool nothing is known."""
    (tmp_path / "summary").write_text(SUMMARY)
    tool(tools, "vulkaninfo", f"cat {tmp_path}/summary")
    found = [located(f"vulkan:{number}", tmp_path) for number in range(3)]
    assert found == ["pci:0000:0c:00.0", "vulkan:1", "pci:0000:03:00.0"]
    tool(tools, "vulkaninfo", "exit 1")
    assert located("vulkan:0", tmp_path) == "vulkan:0"
    assert vram_of("vulkan:0", tmp_path) is None


def test_nvidia_by_its_place(tools: Path, tmp_path: Path) -> None:
    """Where Vulkan runs on a GPU of theirs."""
    card(tmp_path, 0, "0000:03:00.0", used=0, total=0, vendor="0x10de")
    tool(tools, "nvidia-smi", 'test "$4" = 0000:03:00.0 && echo "1024, 8192"')
    assert vram_of("pci:0000:03:00.0", tmp_path) == Vram(GB, 8 * GB)


def test_auto_is_nvidia_or_the_only_amd(tools: Path, tmp_path: Path) -> None:
    """A GPU inside the CPU, with little memory of its own, is not counted; of two nobody knows which."""
    tool(tools, "nvidia-smi", "exit 9")
    assert vram_of("auto", tmp_path) is None
    card(tmp_path, 0, "0000:30:00.0", used=0, total=GB // 2)
    card(tmp_path, 1, "0000:03:00.0", used=GB, total=16 * GB)
    assert vram_of("auto", tmp_path) == Vram(15 * GB, 16 * GB)
    card(tmp_path, 2, "0000:04:00.0", used=GB, total=16 * GB)
    assert vram_of("auto", tmp_path) is None
    tool(tools, "nvidia-smi", 'echo "1024, 8192"')
    assert vram_of("auto", tmp_path) == Vram(GB, 8 * GB)
