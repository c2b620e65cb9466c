"""A folder of pictures and their thumbnails kept within a size and an age: the oldest pictures go first."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.jobs.thumbnails import SUFFIX
from gguf_imagegen.settings import Keep

LEFT_BEHIND = 3600.0
"""Seconds after which a file that is not finished belongs to a server that was killed."""


@dataclass(frozen=True)
class _File:
    """A picture; `size` is that of its `thumbnails`, too."""

    path: Path
    size: int
    made: float
    thumbnails: tuple[Path, ...] = ()

    def delete(self) -> None:
        for path in (self.path, *self.thumbnails):
            with contextlib.suppress(OSError):
                path.unlink()


class Keeping:
    """Deletes pictures beyond the limits; `names` matches theirs, and no other file is touched."""

    def __init__(self, folder: Path, names: re.Pattern[str], limits: Keep) -> None:
        self._folder = folder
        self._names = names
        self._limits = limits
        self._due = 0.0
        """When the next picture is too old, if none is added before."""

    def added(self) -> None:
        """There is a new picture or thumbnail; the next `trim` looks at all of them."""
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
            file.delete()
            total -= file.size

    @property
    def _age(self) -> float:
        return math.inf if self._limits.age is None else self._limits.age

    def _too_old(self, file: _File, now: float) -> bool:
        return now - file.made > self._age

    def _too_much(self, total: int) -> bool:
        return self._limits.size is not None and total > self._limits.size

    def _files(self, now: float) -> list[_File]:
        """The pictures; what a killed server left half written, and lone thumbnails, go on the way."""
        found: dict[str, _File] = {}
        thumbnails: dict[str, list[_File]] = defaultdict(list)
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    file = _File(Path(entry.path), entry.stat().st_size, entry.stat().st_mtime)
                    if self._names.fullmatch(entry.name):
                        found[entry.name] = file
                    elif picture := self._picture_of(entry.name):
                        thumbnails[picture].append(file)
                    elif self._half_written(entry.name) and now - file.made > LEFT_BEHIND:
                        file.path.unlink()
        for picture, small in thumbnails.items():
            if picture in found:
                found[picture] = _with(found[picture], small)
            else:
                _without_picture(small, now)
        return list(found.values())

    def _picture_of(self, name: str) -> str:
        """The name of the picture of which this would be a thumbnail; "" if it is none."""
        suffix = SUFFIX.search(name)
        picture = name[: suffix.start()] if suffix and suffix.end() == len(name) else ""
        return picture if self._names.fullmatch(picture) else ""

    def _half_written(self, name: str) -> bool:
        whole = name[1:].removesuffix(".part")
        return name.endswith(".part") and bool(self._names.fullmatch(whole) or self._picture_of(whole))


def _with(picture: _File, small: list[_File]) -> _File:
    size = picture.size + sum(each.size for each in small)
    return _File(picture.path, size, picture.made, tuple(each.path for each in small))


def _without_picture(small: list[_File], now: float) -> None:
    """Young ones may belong to a picture that came after its folder was read."""
    for each in small:
        if now - each.made > LEFT_BEHIND:
            each.delete()
