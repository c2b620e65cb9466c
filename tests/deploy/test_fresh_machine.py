"""With `--all` alone: wheels are built, and install themselves on a fresh Debian without a compiler."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from gguf_imagegen.engines.process import WORKER, EngineProcess
from gguf_imagegen.engines.sdcpp.choice import best
from gguf_imagegen.engines.sdcpp.golden import checked, likeness
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.levels import VARIABLE, Level, cpu_flags, installed_levels, runnable
from scripts.wheels.levels import LEVELS
from tests.conftest import DEADLINE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/build_wheels makes; objects that are there from before are taken again."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / "scripts" / "build_wheels", "--archive", "--to", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The engine's wheel."""
    (wheel,) = dist.glob("stable_diffusion_cpp_python-*manylinux*.whl")
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def levels(unpacked: Path) -> tuple[Level, ...]:
    return installed_levels(unpacked / "stable_diffusion_cpp" / "lib")


def test_the_wheel_has_every_level_and_licence(unpacked: Path, levels: tuple[Level, ...]) -> None:
    assert [level.name for level in levels] == [level.name for level in LEVELS["x86_64"]]
    assert json.loads((levels[0].library.parent / "levels.json").read_text())["backend"] == "cpu"
    assert len(list(unpacked.glob("*.dist-info/licenses/*"))) == 6


def test_every_level_that_runs_here_is_right(levels: tuple[Level, ...]) -> None:
    """Each draws the golden picture; of all together the best that this CPU runs is chosen, by trying."""
    here = runnable(levels, cpu_flags())
    found = {level.library: checked(level.library, 2) for level in levels}
    for level in here:
        assert found[level.library].right, (level.name, found[level.library].words)
    assert best(levels, found.__getitem__)[0] is here[0]


async def test_the_lowest_level_is_right_on_an_old_cpu(levels: tuple[Level, ...]) -> None:
    """Of 2008, whose instructions QEMU has and no later ones; the level above it ends there."""
    for level, right in ((levels[-1], True), (levels[-2], False)):
        device = Device(threads=2, environment={VARIABLE: str(level.library)})
        command = ("qemu-x86_64", "-cpu", "Nehalem", *WORKER)
        found = await likeness(EngineProcess(stall_timeout=DEADLINE, command=command, device=device), 2)
        assert found.right is right, (level.name, found.words)


def test_the_image(dist: Path) -> None:
    """Its steps in chroots; with a read-only root and no rights it is healthy and makes a picture."""
    subprocess.run([ROOT / "scripts" / "try_image", "--wheels", dist], check=True)


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
@pytest.mark.parametrize("way", ["uvx", "pipx", "wheels", "archive"])
def test_a_fresh_debian(way: str, suite: str, dist: Path) -> None:
    """Reaches its first picture, without a compiler; the archive without Python, too."""
    subprocess.run([ROOT / "scripts" / "try_fresh_machine", suite, way, "--from", dist], check=True)
