"""Devices: what `--devices` names, and the environment that keeps a worker to one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from gguf_imagegen.machine.devices import (
    CORES,
    Device,
    check_names,
    gpu_names,
    has_gpu_node,
    make_devices,
)

pytestmark = pytest.mark.posix

HIDDEN = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "GGML_VK_VISIBLE_DEVICES": ""}


def devices(*names: str, lanes: int = 1, threads: int = 0, cores: int = 8, **env: str) -> Sequence[Device]:
    return make_devices(names, lanes, threads, cores, env)


def test_auto_leaves_everything_to_the_engine() -> None:
    """One lane with all cores, or as many threads as the setting says, in an environment as it was."""
    assert devices("auto") == (Device("auto", 8),)
    assert devices("auto", threads=3)[0].threads == 3
    assert Device().applied({"PATH": "/bin"}) == {"PATH": "/bin"}


def test_each_gpu_is_seen_alone() -> None:
    """The worker of one GPU sees no other, through no backend; its free memory is what counts."""
    first, second, cpu = devices("cuda:0", "vulkan:1", "cpu")
    assert (first.environment, first.gpu, first.kind) == (
        {**HIDDEN, "CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "cuda:0", "cuda",
    )  # fmt: skip
    assert (second.environment, second.gpu) == ({**HIDDEN, "GGML_VK_VISIBLE_DEVICES": "1"}, "vulkan:1")
    assert (cpu.environment, cpu.gpu, cpu.cores) == (HIDDEN, None, ())
    assert [device.threads for device in (first, second, cpu)] == [2, 2, 2]


def test_numbers_count_within_what_we_see_ourselves() -> None:
    """A container or a batch system that shows us two GPUs means those."""
    (device,) = devices("cuda:1", CUDA_VISIBLE_DEVICES="4, GPU-8f2a")
    assert (device.environment["CUDA_VISIBLE_DEVICES"], device.gpu) == ("GPU-8f2a", "cuda:GPU-8f2a")
    with pytest.raises(ValueError, match=r"no cuda:2: CUDA_VISIBLE_DEVICES lets this program see 2"):
        check_names(["cuda:2"], {"CUDA_VISIBLE_DEVICES": "4,5"})


@pytest.mark.parametrize("names", [("auto",), ("cpu",)])
def test_cpu_lanes_share_the_cores(names: tuple[str, ...]) -> None:
    """Evenly, each core to one lane, and with as many threads; with too many lanes they share cores."""
    mine = sorted(os.sched_getaffinity(0))
    found = devices(*names, lanes=len(mine), cores=len(mine))
    assert [device.cores for device in found] == [(core,) for core in mine]
    assert {device.threads for device in found} == {1}
    assert [device.name for device in found] == [f"cpu:{number}" for number in range(len(mine))]
    many = devices(*names, lanes=3 * len(mine), cores=len(mine))
    assert {device.cores for device in many} == {(core,) for core in mine}
    assert {device.threads for device in devices(*names, lanes=2, threads=5)} == {5}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["gpu"], "'gpu' is not a device: use auto, cpu, or GPUs by number, e.g. cuda:0"),
        (["cuda"], "'cuda' is not a device"),
        (["auto", "cpu"], "or auto alone"),
        (["none", "cpu"], "or auto alone"),
        ([], "name devices"),
        (["cpu", "cpu"], "--cpu-lanes 2"),
    ],
)
def test_wrong_names_are_refused(names: list[str], words: str) -> None:
    """With what to write instead."""
    with pytest.raises(ValueError, match=words):
        check_names(names, {})


@pytest.mark.parametrize(
    ("found", "names"),
    [
        ([("CUDA0", "gpu"), ("CUDA1", "gpu"), ("CPU", "cpu")], ["cuda:0", "cuda:1"]),
        ([("CUDA0", "gpu"), ("Vulkan0", "gpu"), ("CPU", "cpu")], ["cuda:0"]),
        ([("Vulkan0", "gpu"), ("Vulkan1", "igpu")], ["vulkan:0"]),
        ([("CPU", "cpu")], []),
    ],
)
def test_discrete_gpus_become_names(found: list[tuple[str, str]], names: list[str]) -> None:
    """Each once, even if two backends see it."""
    told: list[Mapping[str, str]] = [{"name": name, "kind": kind} for name, kind in found]
    assert gpu_names(told) == names


def test_gpus_have_nodes(tmp_path: Path) -> None:
    """The engine is asked for GPUs only where there may be one."""
    assert not has_gpu_node(tmp_path)
    (tmp_path / "dri").mkdir()
    (tmp_path / "dri" / "renderD128").touch()
    assert has_gpu_node(tmp_path)


def test_a_worker_keeps_to_its_cores() -> None:
    """And so do the threads that it starts."""
    core = min(os.sched_getaffinity(0))
    code = (
        "import os\nfrom gguf_imagegen.machine.processes import become_worker\n"
        "become_worker()\nprint(sorted(os.sched_getaffinity(0)))"
    )
    env = Device("cpu:0", cores=(core,)).applied(os.environ)
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert (env[CORES], run.stdout) == (str(core), f"[{core}]\n")
