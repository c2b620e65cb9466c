"""A folder of pictures kept within a size and an age: the oldest go first."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.settings import Keep

LEFT_BEHIND = 3600.0
"""Seconds after which a file that is not finished belongs to a server that was killed."""


@dataclass(frozen=True)
class _File:
    path: Path
    size: int
    made: float


class Keeping:
    """Deletes pictures beyond the limits; `names` matches theirs, and no other file is touched."""

    def __init__(self, folder: Path, names: re.Pattern[str], limits: Keep) -> None:
        self._folder = folder
        self._names = names
        self._limits = limits
        self._due = 0.0
        """When the next picture is too old, if none is added before."""

    def added(self) -> None:
        """There is a new picture; the next `trim` looks at all of them."""
        self._due = 0.0

    def trim(self) -> None:
        """Delete what is too much. Reads the folder only when there is something to do."""
        now = time.time()
        if now < self._due:
            return
        self._due = math.inf
        files = sorted(self._files(now), key=lambda file: file.made)
        total = sum(file.size for file in files)
        for file in files:
            if not self._too_old(file, now) and not self._too_much(total):
                self._due = min(self._due, file.made + self._age)  # 0 if one was added meanwhile
                break
            with contextlib.suppress(OSError):
                file.path.unlink()
            total -= file.size

    @property
    def _age(self) -> float:
        return math.inf if self._limits.age is None else self._limits.age

    def _too_old(self, file: _File, now: float) -> bool:
        return now - file.made > self._age

    def _too_much(self, total: int) -> bool:
        return self._limits.size is not None and total > self._limits.size

    def _files(self, now: float) -> list[_File]:
        """The pictures; what a killed server left half written is deleted on the way."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    file = _File(Path(entry.path), entry.stat().st_size, entry.stat().st_mtime)
                    if self._names.fullmatch(entry.name):
                        found.append(file)
                    elif self._half_written(entry.name) and now - file.made > LEFT_BEHIND:
                        file.path.unlink()
        return found

    def _half_written(self, name: str) -> bool:
        return name.endswith(".part") and bool(self._names.fullmatch(name[1:].removesuffix(".part")))
