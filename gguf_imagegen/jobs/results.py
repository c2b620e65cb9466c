"""Finished images by unguessable name, on disk where possible, for as long as jobs can be read."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from gguf_imagegen.errors import NotFound

log = logging.getLogger(__name__)
NAME = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9_-]{22,}\.(png|jpeg|webp)")
MAX_IN_MEMORY = 256 * 1024 * 1024
"""Bytes kept in memory when the disk refuses; the oldest go first."""


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
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_urlsafe(18)}.{extension}"
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
        made = self._made.get(name)
        if made is not None and time.monotonic() - made <= self.ttl and NAME.fullmatch(name):
            if name in self._memory:
                return self._memory[name]
            try:
                return (self._ensure_folder() / name).read_bytes()
            except OSError:
                pass
        raise NotFound("this image does not exist or has expired")

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
