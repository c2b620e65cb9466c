"""Finished images by unguessable name, on disk where possible.

They can be read for as long as jobs can; those in the user's own output folder for as long as they are there.
"""

from __future__ import annotations

import heapq
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from gguf_imagegen.vocabulary.errors import NotFound

log = logging.getLogger(__name__)
NAME = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9_-]{22,}\.(png|jpeg|webp)")
MOST_LISTED = 2000
MAX_IN_MEMORY = 256 * 1024 * 1024
"""Bytes kept in memory when the disk refuses; the oldest go first."""


def _stamp(now: float) -> str:
    """Date, local time and microseconds; unlike `datetime` it bears a TZ that is a day or more away."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now % 1 * 1_000_000):06d}"


class ResultStore:
    """Puts and gets encoded images. Nothing is lost when the disk is full: they stay in memory then."""

    def __init__(self, folder: Path | None, ttl: float) -> None:
        self.ttl = ttl
        self._keep = folder
        self._folder: Path | None = folder
        self._memory: dict[str, bytes] = {}
        self._made: dict[str, float] = {}

    def put(self, data: bytes, extension: str) -> tuple[str, bool]:
        """Store an image; returns its name and whether it is on disk."""
        name = f"{_stamp(time.time())}-{secrets.token_urlsafe(18)}.{extension}"
        self._made[name] = time.monotonic()
        try:
            folder = self._ensure_folder()
            temporary = folder / f".{name}.part"
            try:
                temporary.write_bytes(data)
                os.replace(temporary, folder / name)  # noqa: PTH105 - the atomic primitive is meant
            finally:
                temporary.unlink(missing_ok=True)
            return name, True
        except OSError as exc:
            log.warning("cannot write an image to the result folder (%s); keeping it in memory", exc.strerror)
            self._memory[name] = data
            while sum(map(len, self._memory.values())) > MAX_IN_MEMORY and len(self._memory) > 1:
                self._memory.pop(next(iter(self._memory)))
            return name, False

    def get(self, name: str) -> bytes:
        """The image of this name; NotFound if there is none or it has expired."""
        if self._may_be_read(name):
            if name in self._memory and self._young(name):
                return self._memory[name]
            try:
                return (self._ensure_folder() / name).read_bytes()
            except OSError:
                pass
        raise NotFound("this image does not exist or has expired")

    def names(self) -> list[str]:
        """The images that can be read, the newest first, at most MOST_LISTED."""
        names = {name for name in self._made if self._young(name)}
        if self._keep is not None and self._keep.is_dir():
            names |= {entry.name for entry in os.scandir(self._keep) if NAME.fullmatch(entry.name)}
        return heapq.nlargest(MOST_LISTED, names)

    def delete(self, name: str) -> None:
        """Remove an image, also from the user's own output folder; NotFound if there is none."""
        self.get(name)
        self._made.pop(name, None)
        self._memory.pop(name, None)
        (self._ensure_folder() / name).unlink(missing_ok=True)

    def _may_be_read(self, name: str) -> bool:
        return (self._young(name) or self._keep is not None) and bool(NAME.fullmatch(name))

    def _young(self, name: str) -> bool:
        made = self._made.get(name)
        return made is not None and time.monotonic() - made <= self.ttl

    def sweep(self) -> None:
        """Forget expired images; files in the user's own output folder stay."""
        now = time.monotonic()
        for name in [n for n, made in self._made.items() if now - made > self.ttl]:
            del self._made[name]
            self._memory.pop(name, None)
            if self._keep is None and self._folder is not None:
                (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._keep is None and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _ensure_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="gguf-imagegen-"))
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder
