"""The pictures that tickets name, as files by their SHA-256; there as long as a ticket needs them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Container
from pathlib import Path

from gguf_imagegen.machine import files

UNCLAIMED = 300.0
"""Seconds for which a file may be there before its ticket is: longer than it takes to store a ticket."""


class Spool:
    """Nobody counts who needs a file: `sweep` is told. The methods use the disk: call them in a thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def put(self, data: bytes) -> str:
        """Have a file; its hash. It is on the disk when this returns, and outlives a loss of power."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._folder / digest
        with self._lock:
            try:
                os.utime(path)  # it is wanted again
            except FileNotFoundError:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                files.put(path, data, 0o600, lasting=True)
        return digest

    def get(self, digest: str) -> bytes:
        """Raises OSError if it is lost."""
        return (self._folder / digest).read_bytes()

    def sweep(self, needed: Container[str], age: float = UNCLAIMED) -> None:
        """Delete files that nobody needs and that were last put `age` seconds ago or longer."""
        latest = time.time() - age
        with self._lock, contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.name not in needed and entry.stat().st_mtime <= latest:
                        Path(entry.path).unlink()
