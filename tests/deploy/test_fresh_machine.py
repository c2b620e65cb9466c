"""With `--all` alone: wheels are built, and install themselves on a fresh Debian without a compiler."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from gguf_imagegen.engines.sdcpp.golden import checked
from gguf_imagegen.machine.levels import cpu_flags, installed_levels, runnable
from scripts.wheels.levels import LEVELS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/build_wheels makes; objects that are there from before are taken again."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([ROOT / "scripts" / "build_wheels", "--archive", "--to", folder], check=True)
    return folder


def test_every_level_that_runs_here_is_right(dist: Path, tmp_path: Path) -> None:
    """Each draws the golden picture; the wheel has them all, and every licence."""
    (wheel,) = dist.glob("stable_diffusion_cpp_python-*manylinux*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        licences = [name for name in archive.namelist() if "/licenses/" in name]
    assert len(licences) == 6
    folder = tmp_path / "stable_diffusion_cpp" / "lib"
    levels = installed_levels(folder)
    assert [level.name for level in levels] == [level.name for level in LEVELS["x86_64"]]
    for level in runnable(levels, cpu_flags()):
        likeness = checked(level.library, 2)
        assert likeness.right, (level.name, likeness.words)
    assert json.loads((folder / "levels.json").read_text())["backend"] == "cpu"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
@pytest.mark.parametrize("way", ["uvx", "pipx", "wheels", "archive"])
def test_a_fresh_debian(way: str, suite: str, dist: Path) -> None:
    """Reaches its first picture, without a compiler; the archive without Python, too."""
    subprocess.run([ROOT / "scripts" / "try_fresh_machine", suite, way, "--from", dist], check=True)
