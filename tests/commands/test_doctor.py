"""What the doctor says of an engine that is slow, broken or not there, and the one command that mends it."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from gguf_imagegen.commands import doctor
from gguf_imagegen.commands.doctor import Finding, examine, how_to_install
from gguf_imagegen.engines.sdcpp.choice import NONE_RIGHT
from gguf_imagegen.engines.sdcpp.probe import probe
from gguf_imagegen.machine.levels import InUse
from gguf_imagegen.settings import Settings
from tests.commands.test_cli import cli


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Python runs from the .venv of a checkout."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "install").touch()
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    return tmp_path


@pytest.fixture
def by_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))


def told(features: list[str], backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the CPU build, by a library that says this of itself."""
    return finding("CPU build", {"features": features, "backend": backend}, monkeypatch)


def finding(
    name: str, said: dict[str, Any], monkeypatch: pytest.MonkeyPatch, settings: Settings | None = None
) -> str:
    """The words of one, where a library says this of itself."""
    found = {"features": [], "backend": "CPU", "devices": [], "faults": [], "kernels": None, **said}
    monkeypatch.setattr(doctor, "probe", lambda kernels: (found, ""))
    return next(each.words for each in examine(settings or Settings()) if each.name == name)


def test_a_plain_build_says_what_it_costs(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the command that mends it, for the backend that is there; a fast one has nothing to mend."""
    words = told(["AVX2"], "CPU", monkeypatch)
    assert "AVX2; without tinyBLAS, pictures made on the CPU take about 1.8 times as long" in words
    assert words.endswith(f"; build it with: {checkout}/scripts/install")
    assert told(["AVX2"], "Vulkan0", monkeypatch).endswith("/scripts/install vulkan")
    assert told(["AVX2", "LLAMAFILE"], "CPU", monkeypatch) == "AVX2, LLAMAFILE (LLAMAFILE is tinyBLAS)"
    (checkout / ".venv" / "engine-choice").touch()
    assert "scripts/install --compare chose" in told(["AVX2"], "CPU", monkeypatch)


def test_the_kernels_in_use(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or why none are: off, made for other CPUs, not built in for a reason that scripts/install has kept."""

    def kernels(found: str | None, settings: Settings | None = None) -> str:
        return finding("kernels", {"kernels": found}, monkeypatch, settings)

    words = "AVX2 f32, for products, convolutions and attention on the CPU"
    assert kernels("AVX2 f32") == words
    lacks = "which this CPU, build or system lacks"
    assert kernels("AVX2 f32", Settings(kernels="bf16")) == f"{words}; bf16 needs AVX-512 with BF16, {lacks}"
    wide = f"; int8 needs AVX2, or VNNI where vectors have 512 bits, {lacks}"
    assert kernels("AVX-512 f32", Settings(kernels="int8")) == words.replace("AVX2", "AVX-512") + wide
    for found, less in (
        ("AVX2 f32+int8", "; Q8_0 not as bytes, which needs VNNI"),
        ("AVX2 f32+VNNI int8", ""),
    ):
        assert kernels(found, Settings(kernels="int8")) == words.replace("AVX2 f32", found) + less
    assert kernels("", Settings(kernels="off")) == "off, as --kernels says"
    assert kernels("") == "none: ggml's own are used on this CPU"
    assert kernels(None) == f"none: built without; build it with: {checkout}/scripts/install"
    (checkout / ".venv" / "engine-unpatched").write_text("the engine does not compile with them\n")
    assert kernels(None) == "none: ggml's own are used: the engine does not compile with them"
    (checkout / ".venv" / "engine-choice").write_text("\n")
    assert kernels(None) == "none, as scripts/install --compare chose"


def test_the_level_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a wheel's builds, and why that one; a fault where none draws what it must; else no line."""

    def levels() -> list[Finding]:
        return [each for each in examine(Settings()) if each.name == "CPU level"]

    monkeypatch.setattr(doctor, "choose_build", lambda settings: None)
    assert levels() == []
    monkeypatch.setattr(doctor, "choose_build", lambda settings: InUse("x86-64-v3", "the best for this CPU"))
    assert levels() == [Finding("CPU level", None, "x86-64-v3: the best for this CPU")]
    monkeypatch.setattr(doctor, "choose_build", lambda settings: InUse("x86-64-v2", f"{NONE_RIGHT}; not …"))
    assert [each.ok for each in levels()] == [False]


@pytest.mark.usefixtures("by_pip")
@pytest.mark.parametrize(
    ("backend", "flags"), [("CPU", ""), ("CUDA0", " -DSD_CUDA=ON"), ("ROCm0", " -DSD_HIPBLAS=ON")]
)
def test_without_a_checkout_pip_does_it(backend: str, flags: str) -> None:
    """With the fast build's flags, those of its GPU, and the version that this package can use."""
    command = shlex.split(how_to_install(backend).removeprefix("build it with: ").partition(";")[0])
    assert command[0] == f"CMAKE_ARGS=-DGGML_LLAMAFILE=ON{flags}"
    assert command[1:-1] == [
        sys.executable, "-m", "pip", "install", "--force-reinstall", "--no-cache-dir", "--no-deps",
    ]  # fmt: skip
    pinned = Requirement(command[-1])
    assert metadata.version(pinned.name) in pinned.specifier
    assert "99" not in pinned.specifier


@pytest.mark.usefixtures("by_pip")
def test_windows_has_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """PowerShell takes no variables before a command, and there is no apt."""
    monkeypatch.setattr(sys, "platform", "win32")
    assert how_to_install().startswith(
        f"build it in PowerShell: $env:CMAKE_ARGS='-DGGML_LLAMAFILE=ON'; & '{sys.executable}' -m pip install "
    )
    monkeypatch.setenv("PATH", "")
    (compiler,) = doctor._compiler()
    assert compiler.words == (
        "none: needed only to install or rebuild the engine (Visual Studio's Build Tools)"
    )


def test_a_broken_engine_says_why(tmp_path: Path) -> None:
    """Whatever the library's loader said, and the command; exit code 1."""
    (tmp_path / "stable_diffusion_cpp.py").write_text("raise OSError('libgomp.so.1: no such file')")
    run = cli("doctor", "--models-dir", tmp_path, PYTHONPATH=str(tmp_path))
    assert run.returncode == 1
    (line,) = [line for line in run.stdout.splitlines() if "FAULT engine" in line]
    assert "does not load (OSError: libgomp.so.1: no such file); build it with: " in line


def test_an_engine_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command."""

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    words = f"stable-diffusion-cpp-python is not installed; {how_to_install()}"
    assert Finding("engine", False, words) in examine(Settings())


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import os; os.abort()", "status -6"),
        ("print('no JSON')", "its answer cannot be read"),
        ("pass", "its answer cannot be read"),
    ],
)
def test_a_library_may_end_the_probe(program: str, why: str) -> None:
    """By a signal, or with words that are none."""
    assert probe(program) == (None, why)


def test_a_probe_that_hangs() -> None:
    """Is given up."""
    assert probe("import time; time.sleep(60)", 0.1) == (None, "no answer within 0.1 s")
