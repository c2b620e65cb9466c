"""Finished images by unguessable name, on disk where possible.

They can be read for as long as jobs can; those in a folder that outlives the server until they go.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gguf_imagegen.jobs.keeping import Keeping
from gguf_imagegen.jobs.thumbnails import Thumbnails
from gguf_imagegen.machine import files, scratch
from gguf_imagegen.pictures import thumbnails
from gguf_imagegen.settings import Keep, Settings
from gguf_imagegen.vocabulary.errors import NotFound

log = logging.getLogger(__name__)
NAME = re.compile(r"\d{8}-\d{6}-[A-Za-z0-9_-]{22,}\.(png|jpeg|webp)")
MISSING = "this image does not exist or has expired"
MAX_IN_MEMORY = 256 * 1024 * 1024
"""Bytes kept in memory when the disk refuses; the oldest go first."""


def _stamp(now: float) -> str:
    """Date, local time and microseconds; unlike `datetime` it bears a TZ that is a day or more away."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now % 1 * 1_000_000):06d}"


def draw_names(count: int, extension: str) -> list[str]:
    """Names for images that are still to be made; they sort by time, and cannot be guessed."""
    now = time.time()
    return [
        f"{_stamp(now + index / 1_000_000)}-{secrets.token_urlsafe(18)}.{extension}" for index in range(count)
    ]


def results_of(settings: Settings, kept: Path | None) -> ResultStore:
    """In the folder that the settings name, else in the state folder's, `kept`, else for a time only."""
    if settings.output_dir is not None or kept is None:
        return ResultStore(settings.output_dir, settings.job_ttl)
    return ResultStore(kept, settings.job_ttl, settings.keep_pictures)


class ResultStore:
    """Puts and gets encoded images. Nothing is lost when the disk is full: they stay in memory then.

    A folder with limits is the server's own, and its files are the owner's; one without is the user's, and
    never emptied. Without a folder they are in a temporary one. An age below `ttl` means `ttl`.
    """

    def __init__(self, folder: Path | None, ttl: float, limits: Keep | None = None) -> None:
        self.ttl = ttl
        self._keep = folder
        self._limits = limits
        self._folder: Path | None = folder
        self._temporary = ExitStack()
        self._keeping: Keeping | None = None
        if folder is not None and limits is not None:
            age = None if limits.age is None else max(limits.age, ttl)
            self._keeping = Keeping(folder, NAME, replace(limits, age=age))
        self._thumbnails = Thumbnails(lambda: None if self._is_users else self._folder)
        self._memory: dict[str, bytes] = {}
        self._made: dict[str, float] = {}
        self._owners: dict[str, str] = {}

    @property
    def keeps(self) -> bool:
        """Whether images stay when their job is forgotten."""
        return self._keep is not None and (self._limits is None or self._limits.age != 0)

    def put(self, data: bytes, extension: str, owner: str = "", name: str = "") -> tuple[str, bool]:
        """Store an image of the caller named `owner`; returns its name and whether it is on disk.

        Without a name that was drawn before it gets a new one.
        """
        name = name or draw_names(1, extension)[0]
        self._made[name] = time.monotonic()
        self._owners[name] = owner
        try:
            folder = self._ensure_folder()
            files.put(folder / name, data, 0o666 if self._is_users else 0o600, lasting=self._keep is not None)
            if self._keeping is not None:
                self._keeping.added()
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
        raise NotFound(MISSING)

    def thumbnail(self, name: str, width: int) -> bytes | None:
        """A WebP of this width, made at the first call; None where the picture is no wider and a small file.

        Raises NotFound as `get` does. CPU-bound: call it in a thread.
        """
        self._require(name)
        small = self._thumbnails.get(name, width)
        if small is None and (small := thumbnails.make(self.get(name), width)) is not None:
            self._thumbnails.put(name, width, small)
            if self._keeping is not None:
                self._keeping.added()
            self._require(name)  # else it was deleted meanwhile, and so must be what was made of it
        return small

    def _require(self, name: str) -> None:
        if not NAME.fullmatch(name):
            raise NotFound(MISSING)
        in_memory = name in self._memory and self._young(name)
        if not self._may_be_read(name) or not (in_memory or (self._ensure_folder() / name).is_file()):
            self._thumbnails.delete(name)
            raise NotFound(MISSING)

    def names(self, seen: Callable[[str], bool] | None = None) -> list[str]:
        """The images that can be read, of owners to be `seen`, the newest first."""
        names = {name for name in list(self._made) if self._young(name)} | self._names_on_disk()
        if seen is not None:
            names = {name for name in names if seen(self.owner(name))}
        return sorted(names, reverse=True)

    def _names_on_disk(self) -> set[str]:
        if self._keep is None or not self._keep.is_dir():
            return set()
        return {entry.name for entry in os.scandir(self._keep) if NAME.fullmatch(entry.name)}

    def owner(self, name: str) -> str:
        """The name of the caller who had it made; empty where that is not known."""
        return self._owners.get(name, "")

    def take_owners(self, owners: Mapping[str, str]) -> list[str]:
        """By name of an image that an earlier run of the server made: whose it is; gives those that are gone.

        Reads the disk: call it in a thread.
        """
        there = self._names_on_disk()
        self._owners = {**{name: owners[name] for name in owners if name in there}, **self._owners}
        return [name for name in owners if name not in there]

    def delete(self, name: str) -> None:
        """Remove an image, also from the user's own output folder; NotFound if there is none."""
        self.get(name)
        self._made.pop(name, None)
        self._owners.pop(name, None)
        self._memory.pop(name, None)
        (self._ensure_folder() / name).unlink(missing_ok=True)
        self._thumbnails.delete(name)

    def _may_be_read(self, name: str) -> bool:
        return (self._young(name) or self._keep is not None) and bool(NAME.fullmatch(name))

    def _young(self, name: str) -> bool:
        made = self._made.get(name)
        return made is not None and time.monotonic() - made <= self.ttl

    def sweep(self) -> None:
        """Forget expired images and keep the limits; a user's own output folder stays as it is.

        Reads the disk: call it in a thread.
        """
        now = time.monotonic()
        for name in [n for n, made in list(self._made.items()) if now - made > self.ttl]:
            self._made.pop(name, None)
            self._memory.pop(name, None)
            if self._keep is None:
                self._owners.pop(name, None)
            if self._keep is None and self._folder is not None:
                (self._folder / name).unlink(missing_ok=True)
                self._thumbnails.delete(name)
        if self._keeping is not None:
            self._keeping.trim()

    def close(self) -> None:
        self._temporary.close()
        self._folder = self._keep

    def _ensure_folder(self) -> Path:
        if self._folder is None:
            self._folder = self._temporary.enter_context(scratch.folder("pictures"))
        self._folder.mkdir(mode=0o777 if self._is_users else 0o700, parents=True, exist_ok=True)
        return self._folder

    @property
    def _is_users(self) -> bool:
        return self._keep is not None and self._limits is None
