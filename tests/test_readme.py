"""The README keeps its word: its commands run, and the flags it names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_imagegen.settings import Settings
from tests.conftest import ServerProcess

pytestmark = pytest.mark.posix

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
FIRST = LINES[0]
CURLS = [line for line in LINES if line.startswith("curl ")]
COMMANDS = [line for line in LINES if line.startswith("gguf-imagegen ")]
TOOL = f"{shlex.quote(sys.executable)} -m gguf_imagegen"


def shell(line: str, cwd: Path) -> str:
    """Run a line as a user would; its standard output."""
    line = re.sub(r"^(\.venv/bin/)?gguf-imagegen", TOOL, line)
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GGUF_IMAGEGEN_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader stands."""
    return tmp_path_factory.mktemp("reader")


def test_the_first_command_serves() -> None:
    """Its last part starts a server on the embedded model; `embedded` is one on a free port."""
    assert FIRST.split(" && ")[-1] == ".venv/bin/gguf-imagegen serve"
    assert Settings().model == "embedded"


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_run(line: str, folder: Path) -> None:
    """Every gguf-imagegen command of the README works in the reader's folder."""
    shell(line, folder)


def test_curls_answer(folder: Path, embedded: ServerProcess) -> None:
    """Every curl of the README works, in the order of the page, and streams end with [DONE]."""
    for line in CURLS:
        out = shell(line.replace("http://127.0.0.1:8080", embedded.url), folder)
        assert not out.startswith('{"error"'), line
        if "curl -N" in line:
            assert '"progress":100.0' in out
            assert out.endswith("data: [DONE]\n\n")


def test_python_runs(folder: Path, embedded: ServerProcess) -> None:
    """The Python of the README runs with the official client and prints OpenAI's events."""
    code = "".join(re.findall(r"```python\n(.*?)```", README, re.S))
    code = code.replace("http://127.0.0.1:8080", embedded.url)
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]


def test_flags_exist() -> None:
    """Every flag that README and docs name is a setting or a flag of a named command."""
    text = README + "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"`(--[a-z-]+)", text))
    fields = {name.replace("_", "-"): field for name, field in Settings.model_fields.items()}
    known = {f"--{name}" for name in fields} | {
        "--help",
        "--url",
        "--rules",
        "--vae",
        "--no-check",
        "--force",
        "--type",
        "--pull",  # of node
        "--node-ip-address",  # of ray start
        "--engine",  # of scripts.bench.contest
        "--report",  # of scripts.bench
    }
    known |= {f"--no-{name}" for name, field in fields.items() if field.annotation is bool}
    assert named <= known, named - known


def test_files_exist() -> None:
    """Every file that README links to or runs is there."""
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", README):
        assert (ROOT / link.partition("#")[0]).is_file(), link
    for script in re.findall(r"`?(scripts/\w+)`?", README):
        assert os.access(ROOT / script, os.X_OK), script
