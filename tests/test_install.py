"""scripts/install compiles when it must and only then, and `--compare` installs what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.bench import compare_engines

ROOT = Path(__file__).resolve().parents[1]
ENGINE = "stable-diffusion-cpp-python"

PYTHON = """#!/usr/bin/env bash
# Stands for Python: keeps what it is told, and makes an "engine" of its flags.
library=.venv/lib/python3.x/site-packages/stable_diffusion_cpp/lib/libstable-diffusion.so
case "$*" in
  "-m venv .venv")
    mkdir -p .venv/bin "$(dirname $library)"
    cp "$0" .venv/bin/python
    printf '#!/usr/bin/env bash\\necho doctor >>calls' >.venv/bin/gguf-imagegen
    chmod +x .venv/bin/gguf-imagegen ;;
  "-c import stable_diffusion_cpp") [ "$(cat $library 2>/dev/null)" ] ;;
  *scripts.engine.wheels*--check*) echo "look at its picture" >>calls; [ ! -f wrong-picture ] ;;
  *scripts.engine.wheels*)
    echo "wheel ${*: -3}" >>calls
    [ -f no-wheel ] || echo wheel >$library; [ ! -f no-wheel ] ;;
  *scripts.engine.patched*) echo "compile $CMAKE_ARGS" >>calls; echo "engine of $CMAKE_ARGS" >$library ;;
  *--force-reinstall*) echo "as pip does $CMAKE_ARGS" >>calls; echo "engine of $CMAKE_ARGS" >$library ;;
  *.compare_engines*) echo "compare $CMAKE_ARGS" >>calls; echo -DFAST=ON >"${@: -1}"; echo fast >$library ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """scripts/install with a Python that compiles nothing."""
    shutil.copytree(ROOT / "scripts" / "engine", tmp_path / "scripts" / "engine")
    shutil.copy(ROOT / "scripts" / "install", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def install(checkout: Path, *words: str, **env: str) -> list[str]:
    """What it did beside calling pip for the package: lines of `compile FLAGS`, `compare …`, `doctor`."""
    (checkout / "calls").unlink(missing_ok=True)
    subprocess.run(
        [checkout / "scripts" / "install", *words],
        env={**os.environ, "PYTHON": str(checkout / "python"), "CMAKE_ARGS": "", **env},
        check=True, capture_output=True,
    )  # fmt: skip
    return [" ".join(line.split()) for line in (checkout / "calls").read_text().splitlines()]


def library(checkout: Path) -> Path:
    (found,) = (checkout / ".venv" / "lib").rglob("*.so")
    return found


def test_it_compiles_once(checkout: Path) -> None:
    """And again for other flags."""
    assert install(checkout) == ["compile -DGGML_LLAMAFILE=ON", "doctor"]
    assert install(checkout) == ["doctor"]
    assert install(checkout, "cuda") == ["compile -DGGML_LLAMAFILE=ON -DSD_CUDA=ON", "doctor"]
    assert install(checkout, "cuda", CMAKE_ARGS="-DX=1") == [
        "compile -DGGML_LLAMAFILE=ON -DSD_CUDA=ON -DX=1", "doctor",
    ]  # fmt: skip


@pytest.mark.parametrize("changed", ["requirements.txt", "kernels/*", "hooks/*"])
def test_other_kernels_are_compiled(changed: str, checkout: Path) -> None:
    """Whatever of them has changed."""
    install(checkout)
    for file in (checkout / "scripts" / "engine").glob(changed):
        file.write_text(file.read_text() + "\n")
    assert install(checkout) == ["compile -DGGML_LLAMAFILE=ON", "doctor"]
    assert install(checkout) == ["doctor"]


def test_a_wheel_spares_the_compiler(checkout: Path) -> None:
    """Once: what is installed stays, with `--wheels` and without."""
    taken = ["wheel dist --backend cpu", "look at its picture", "doctor"]
    assert install(checkout, "--wheels", "dist") == taken
    assert install(checkout, "--wheels", "dist") == ["doctor"]
    assert install(checkout) == ["doctor"]
    assert install(checkout, "vulkan", "--wheels", "dist")[0] == "wheel dist --backend vulkan"


@pytest.mark.parametrize(("fault", "before"), [("no-wheel", []), ("wrong-picture", ["look at its picture"])])
def test_a_wheel_that_will_not_do(fault: str, before: list[str], checkout: Path) -> None:
    """None fits, or what it draws is wrong: the engine is compiled."""
    (checkout / fault).touch()
    assert install(checkout, "--wheels", "dist") == [
        "wheel dist --backend cpu", *before, "compile -DGGML_LLAMAFILE=ON", "doctor",
    ]  # fmt: skip
    assert install(checkout) == ["doctor"]


def test_a_plain_build_that_was_chosen_stays_plain(checkout: Path) -> None:
    """Where the comparison found it to be the fastest, our kernels are not built in."""
    install(checkout)
    (checkout / ".venv" / "engine-choice").write_text("\n")
    assert install(checkout) == ["as pip does", "doctor"]
    assert install(checkout) == ["doctor"]


@pytest.mark.parametrize("content", ["a plain pip install of it", ""])
def test_it_looks_at_the_engine_that_is_there(content: str, checkout: Path) -> None:
    """Another library than the one it made, and one that does not load, are replaced."""
    install(checkout)
    library(checkout).write_text(content)
    assert install(checkout) == ["compile -DGGML_LLAMAFILE=ON", "doctor"]
    assert install(checkout) == ["doctor"]


def test_what_the_comparison_chose_stays(checkout: Path) -> None:
    """The user's own flags reach it; the next installation compiles nothing."""
    assert install(checkout, "--compare", CMAKE_ARGS="-DX=1") == [
        "compile -DGGML_LLAMAFILE=ON -DX=1", "compare -DX=1", "doctor",
    ]  # fmt: skip
    assert install(checkout, CMAKE_ARGS="-DX=1") == ["doctor"]
    assert install(checkout) == ["compile -DFAST=ON", "doctor"]


@pytest.mark.parametrize("backend", ["cuda", "vulkan", "metal", "hip", "sycl"])
def test_engines_of_a_gpu_are_not_compared(backend: str, checkout: Path) -> None:
    """Said before anything is built, so that no CPU engine takes the place of the GPU's."""
    run = subprocess.run(
        [checkout / "scripts" / "install", "--compare", backend],
        env={**os.environ, "PYTHON": str(checkout / "python")}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 2
    assert f"code that {backend} does not run" in run.stderr
    assert not (checkout / ".venv").exists()


# -- scripts.bench.compare_engines --------------------------------------------------------------------

Seconds = Callable[[str, bool], float]
"""Of a step, by a build's folder and whether flash attention is on."""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(compare_engines, "BUILDS", tmp_path / "engines")
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    return compare_engines


class Machine:
    """In place of the processes that compile and measure: keeps what it was asked for."""

    def __init__(self, seconds: Seconds, noise: Callable[[str], int] = lambda folder: 0) -> None:
        self.compiled: list[str] = []
        self.measured: list[str] = []
        self.installed: list[str] = []
        self._seconds, self._noise = seconds, noise

    def run(self, command: list[str], env: dict[str, str] | None = None, **_: Any) -> SimpleNamespace:
        if "download" in command:  # so that each is built as it is
            return SimpleNamespace(returncode=1, stdout="", stderr="")
        if "wheel" in command:
            assert env is not None
            assert command[-1] == f"{ENGINE}=={version(ENGINE)}"
            self.compiled.append(env["CMAKE_ARGS"])
            Path(command[command.index("--wheel-dir") + 1], "engine.whl").touch()
        elif "--target" in command:
            (Path(command[command.index("--target") + 1]) / "stable_diffusion_cpp").mkdir()
        elif "--force-reinstall" in command:
            self.installed.append(Path(command[-1]).parent.name)
        else:
            assert env is not None
            return self.measure(command, Path(env["PYTHONPATH"].split(os.pathsep)[0]).name)
        return SimpleNamespace()

    def measure(self, command: list[str], folder: str) -> SimpleNamespace:
        flash = "--flash-attention" in command
        if "--pictures" in command:
            place = Path(command[command.index("--pictures") + 1])
            for seed in range(int(command[command.index("--seeds") + 1])):
                pixels = np.full((8, 8, 3), 100 + self._noise(folder), np.uint8)
                Image.fromarray(pixels).save(place / f"{seed}.png")
        else:
            self.measured.append(folder + "+flash" * flash)
        return SimpleNamespace(stdout=json.dumps({"step": self._seconds(folder, flash), "decode": 0.5}))


def compared(
    compare: ModuleType, machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str
) -> str:
    """The flags that are remembered."""
    choice = folder / "choice"
    monkeypatch.setattr(compare.subprocess, "run", machine.run)
    monkeypatch.setattr("sys.argv", ["compare_engines.py", "--choice", str(choice), *words])
    compare.main()
    return choice.read_text().strip()


def test_the_best_combination_decides(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build that is the fastest only with flash attention; what is far behind is measured once."""

    def seconds(folder: str, flash: bool) -> float:
        name = folder.partition(f"-{version(ENGINE)}")[0]
        return {"plain": 2.0, "tinyblas": 1.0, "tinyblas-fast": 0.5 if flash else 1.2}[name]

    monkeypatch.setattr(compare, "CANDIDATES", {"plain": "", "tinyblas": "-DA=1", "tinyblas-fast": "-DB=1"})
    machine = Machine(seconds)
    monkeypatch.setenv("CMAKE_ARGS", "-DX=1")
    assert compared(compare, machine, tmp_path, monkeypatch) == "-DB=1", "the user's own are added by install"
    assert machine.compiled == ["-DX=1", "-DA=1 -DX=1", "-DB=1 -DX=1"]
    assert len(machine.measured) == 2 * 3 + 2
    assert len(set(machine.measured)) == 6
    assert machine.installed[0].startswith("tinyblas-fast-")
    assert "fastest with flash attention. `gguf-imagegen tune MODEL`" in capsys.readouterr().err


def test_wrong_pictures_do_not_win(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However fast, with flash attention and without."""
    machine = Machine(
        lambda folder, flash: 2.0 if folder.startswith("plain") else 1.0,
        lambda folder: 0 if folder.startswith("plain") else 40,
    )
    assert compared(compare, machine, tmp_path, monkeypatch, "--only", "kernels", "--rounds", "1") == ""
    assert machine.installed[0].startswith("plain-")


def test_a_build_is_of_its_version_and_flags(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same is taken again, another version or other flags are compiled."""
    machine = Machine(lambda folder, flash: 1.0)
    monkeypatch.setattr(compare.subprocess, "run", machine.run)
    console = SimpleNamespace(print=lambda words: None)
    first = compare.build("one", "-DA=1", console)
    assert compare.build("one", "-DA=1", console) == first
    assert first.wheel.is_file()
    assert compare.build("one", "-DA=2", console).folder != first.folder
    assert compare.build("plain", "", console).folder.name == f"plain-{version(ENGINE)}"
    assert len(machine.compiled) == 3
    monkeypatch.setattr(f"{__name__}.version", lambda name: "9.9")
    monkeypatch.setattr(compare, "version", lambda name: "9.9")
    assert compare.build("plain", "", console).folder.name == "plain-9.9"
    assert len(machine.compiled) == 4
