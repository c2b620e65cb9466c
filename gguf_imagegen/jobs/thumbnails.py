"""Thumbnails that were made: kept beside their pictures where those are the server's own, else in memory."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

from gguf_imagegen.pictures.thumbnails import WIDTHS

log = logging.getLogger(__name__)
SUFFIX = re.compile(r"\.\d+\.webp")
"""What follows the name of the picture in that of its thumbnail."""
MAX_IN_MEMORY = 32 * 1024 * 1024
"""Bytes; the oldest go first."""


class Thumbnails:
    """By picture and width. `folder` gives the folder of the pictures, None where that is the user's.

    Called from threads.
    """

    def __init__(self, folder: Callable[[], Path | None]) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._memory: dict[str, bytes] = {}

    def get(self, picture: str, width: int) -> bytes | None:
        """What is kept."""
        name = _name(picture, width)
        with self._lock:
            if name in self._memory:
                return self._memory[name]
        folder = self._folder()
        with contextlib.suppress(OSError):
            return (folder / name).read_bytes() if folder else None
        return None

    def put(self, picture: str, width: int, data: bytes) -> None:
        name, folder = _name(picture, width), self._folder()
        if folder is None or not _written(folder, name, data):
            with self._lock:
                self._memory[name] = data
                while sum(map(len, self._memory.values())) > MAX_IN_MEMORY:
                    self._memory.pop(next(iter(self._memory)))

    def delete(self, picture: str) -> None:
        """All of a picture."""
        folder = self._folder()
        for name in (_name(picture, width) for width in WIDTHS):
            with self._lock:
                self._memory.pop(name, None)
            if folder is not None:
                with contextlib.suppress(OSError):
                    (folder / name).unlink(missing_ok=True)


def _name(picture: str, width: int) -> str:
    return f"{picture}.{width}.webp"


def _written(folder: Path, name: str, data: bytes) -> bool:
    temporary = folder / f".{name}.part"
    try:
        temporary.touch(mode=0o600)
        temporary.write_bytes(data)
        os.replace(temporary, folder / name)  # noqa: PTH105 - the atomic primitive is meant
    except OSError as exc:
        log.info("cannot write a thumbnail (%s); keeping it in memory", exc.strerror)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        return False
    return True
