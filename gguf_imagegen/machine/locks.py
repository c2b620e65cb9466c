"""Lock files: held by one process until it lets go or ends, however it ends."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

AGAIN = 0.1
"""Seconds between two looks whether a lock is free."""


class Held(Exception):
    """Another process has the lock; `holder` is its number, if the file says it."""

    def __init__(self, holder: int | None) -> None:
        super().__init__(holder)
        self.holder = holder


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Have the lock file, which says whose it is and is removed at the end. Raises `Held`."""
    while True:
        handle = os.open(path, FLAGS, 0o644)
        try:
            if not _lock(handle):
                text = os.read(handle, 32).decode("ascii", "replace").strip()
                raise Held(int(text) if text.isdecimal() else None)
            if not _is_open_file(path, handle):  # the last holder removed it meanwhile
                continue
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
            try:
                yield
            finally:
                if sys.platform != "win32":  # there an open file keeps its name
                    path.unlink(missing_ok=True)
            break
        finally:
            os.close(handle)
    if sys.platform == "win32":
        with suppress(PermissionError):  # another process has it meanwhile
            path.unlink(missing_ok=True)


@asynccontextmanager
async def in_turn(path: Path, patience: float) -> AsyncIterator[None]:
    """The same, as soon as whoever has it lets go. Raises `Held` after `patience` seconds."""
    deadline = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(path))
                break
            except Held:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(AGAIN)
        yield


def _is_open_file(path: Path, handle: int) -> bool:
    """Whether this name still is the open file, and was not removed or replaced meanwhile."""
    try:
        return os.path.samestat(path.stat(follow_symlinks=False), os.fstat(handle))
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    FAR = 1 << 30
    """Windows locks bytes, which nobody else may read then: one far behind what the file says, and nearer
    than the largest file of any file system, behind which some cannot seek."""

    def _lock(handle: int) -> bool:
        os.lseek(handle, FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
else:
    import fcntl

    def _lock(handle: int) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
