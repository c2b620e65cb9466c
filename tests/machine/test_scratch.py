"""Temporary folders: gone at the end, and those of killed processes with the next server."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gguf_imagegen.machine import scratch

HOLDER = """
from gguf_imagegen.machine import scratch
with scratch.folder("worker") as folder:
    (folder / "picture").touch()
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie, for this process and those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@contextmanager
def another_process() -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """One that has a folder until it is killed."""
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Path(process.stdout.readline().strip()), process
        finally:
            process.kill()


def test_a_folder_goes_at_the_end(temporary: Path) -> None:
    with scratch.folder("worker") as folder:
        (folder / "picture").touch()
        scratch.sweep()
        assert (folder / "picture").exists(), "it is in use"
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_swept(temporary: Path) -> None:
    """As long as it lives its folder stays."""
    with another_process() as (folder, process):
        scratch.sweep()
        assert (folder / "picture").exists()
        process.kill()
        process.wait()
        assert folder.parent == temporary
        scratch.sweep()
        assert list(temporary.iterdir()) == []


@pytest.mark.posix
def test_nothing_else_is_swept(temporary: Path) -> None:
    """Folders that nobody has locked yet, those of others behind a link, and what only has such a name."""
    for name in ("gguf-imagegen-new", "gguf-imagegen-fresh", "elsewhere"):
        (temporary / name).mkdir()
    (temporary / "gguf-imagegen-fresh" / scratch.LOCK).touch()
    (temporary / "elsewhere" / scratch.LOCK).write_text("1")
    (temporary / "gguf-imagegen-link").symlink_to(temporary / "elsewhere")
    (temporary / "gguf-imagegen-file").write_text("1")
    before = sorted(temporary.rglob("*"))
    scratch.sweep()
    assert sorted(temporary.rglob("*")) == before
