"""Temporary folders of a process, which a later one removes where it was killed before it could."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

from gguf_imagegen.machine import locks
from gguf_imagegen.machine.processes import user_number

PREFIX: Final = "gguf-imagegen-"
LOCK: Final = "in-use.lock"


@contextmanager
def folder(kind: str) -> Iterator[Path]:
    """A new one for this user alone, gone at the end; its lock tells `sweep` that it is in use."""
    made = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
    try:
        with ExitStack() as stack:
            with suppress(OSError):  # a full disk: a folder without a lock is never swept
                stack.enter_context(locks.exclusive(made / LOCK))
            yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def sweep() -> None:
    """Remove what processes of this user that were killed have left."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(locks.Held, OSError):
            if _is_own(left) and (left / LOCK).stat().st_size:  # empty: its owner is about to lock it
                with locks.exclusive(left / LOCK):
                    pass
                shutil.rmtree(left, ignore_errors=True)


def _is_own(path: Path) -> bool:
    """Whether it is a folder that nobody else can have put there, nor anything into it."""
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and user_number() in ("", str(found.st_uid))
