"""The standard streams: always open, and for a server neither a reason to stop nor to wait."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PIECE = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe which is ready takes without waiting."""


def open_closed() -> None:
    """Point closed standard descriptors at /dev/null, before a file or a socket gets their number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(fd, True)
    os.close(fd)
    for name, fd, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115 - a descriptor, kept open


def survive_readers() -> None:
    """Let nothing that happens to the readers of stdout and stderr reach the program: see `Forgiving`.

    Windows cannot ask whether a pipe takes something: there only characters that a console lacks do no harm.
    """
    if sys.platform == "win32":
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError):
            stream.flush()
        text = io.TextIOWrapper(
            Forgiving(fd, "w", closefd=False), stream.encoding, "backslashreplace", write_through=True
        )
        setattr(sys, name, text)


class Forgiving(io.FileIO):
    """Writes what is taken at once, and drops the rest: the reader left, sleeps, or its disk is full."""

    _lost = 0

    def write(self, data: ReadableBuffer, /) -> int:
        """Always all of `data`, as far as the caller can tell."""
        whole = memoryview(data).cast("B")
        left = whole
        with contextlib.suppress(OSError):
            while left and select.select([], [self.fileno()], [], 0)[1]:
                if self._lost:
                    super().write(b"[%d bytes that nobody read are lost]\n" % self._lost)
                    self._lost = 0
                elif taken := super().write(left[:PIECE]):
                    left = left[taken:]
                else:
                    break
        self._lost += len(left)
        return len(whole)
