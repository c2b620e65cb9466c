"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)


def put(path: Path, data: bytes, mode: int, *, lasting: bool) -> None:
    """Write a file under a temporary name, then give it its own; a `lasting` one outlives a loss of power."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with os.fdopen(os.open(temporary, FLAGS, mode), "wb") as file:
            file.write(data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the atomic primitive is meant
    finally:
        temporary.unlink(missing_ok=True)
    if lasting:
        keep_names(path.parent)


def append_flags() -> int:
    """To open a file for writing from where it ends, no other one behind a link of its name, for us alone."""
    wanted = ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY")
    return os.O_WRONLY | os.O_CREAT | sum(getattr(os, name, 0) for name in wanted)


def keep_names(folder: Path) -> None:
    """Have the names in a folder on the disk, where folders can be opened (not on Windows).

    A new name outlives a power cut only when its folder is on the disk as well.
    """
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
