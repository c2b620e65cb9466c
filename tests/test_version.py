"""The version is that of the last tag; without git that of the sdist, or one to fall back to."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.version import Version

import gguf_imagegen

ROOT = Path(__file__).parents[1]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project as far as its metadata need it, without git."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def built(folder: Path) -> Version:
    return Version(str(ProjectMetadata(str(folder), PluginManager()).version))


def git(folder: Path, *words: str) -> None:
    settings = ("user.name=a", "user.email=a@example.org", "commit.gpgsign=false", "tag.gpgsign=false")
    flags = [word for each in settings for word in ("-c", each)]
    subprocess.run(["git", *flags, *words], cwd=folder, check=True, capture_output=True)


def test_of_a_tag(copy: Path) -> None:
    """A tagged commit has the tag's version, a later one is a development version of the next."""
    git(copy, "init")
    git(copy, "add", ".")
    git(copy, "commit", "--message", "first")
    git(copy, "tag", "v1.2.3")
    assert built(copy) == Version("1.2.3")
    git(copy, "commit", "--allow-empty", "--message", "second")
    later = built(copy)
    assert later.is_devrelease
    assert later > Version("1.2.3")


def test_without_git(copy: Path) -> None:
    """A bare copy has a version, too, and an sdist its own."""
    assert built(copy).is_devrelease
    about = "Metadata-Version: 2.4\nName: gguf-imagegen\nVersion: 3.4.5\n"
    (copy / "PKG-INFO").write_text(about, encoding="utf-8")
    assert built(copy) == Version("3.4.5")


def test_before_the_first_tag(copy: Path) -> None:
    git(copy, "init")
    git(copy, "add", ".")
    git(copy, "commit", "--message", "first")
    assert built(copy).is_devrelease


def test_the_package_says_it() -> None:
    assert gguf_imagegen.__version__ == version("gguf-imagegen")
