"""The models folder: the state of each file on disk, who may write it, its verification and its removal.

Beside the files stands `.state` with the same tree, and for a file `NAME` in it

    NAME.json             the record: NAME had this size, time and hash when it was verified
    NAME.lock             held by whoever writes NAME
    NAME.KEY.partial      what has arrived of the content called KEY
    NAME.KEY.verifying    the same, whole, until its hash is known to be right
    NAME.rewriting        being rewritten (`Source.rewritten`)
    NAME.corrupt          a file that was found to be wrong, set aside

so that states are read from the disk alone and survive whatever ends the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.machine import locks
from gguf_imagegen.vocabulary.errors import DiskFull, InvalidModelFile, ModelBusy, UnsupportedOperation

State = Literal["absent", "partial", "verifying", "ready", "unverified", "corrupt"]
OnProgress = Callable[[int, int], None]
"""Told the bytes done and their total."""

STATE = ".state"
MARGIN = 64 << 20
"""Bytes that a pull leaves free."""
PIECE = 4 << 20


@dataclass(frozen=True)
class Record:
    """What was verified: `sha256` is the hash as published, `content` that of the file as it lies here."""

    size: int
    mtime_ns: int
    sha256: str
    content: str


@dataclass(frozen=True)
class Verdict:
    """`ready` for the right hash, `corrupt` for another, `unverified` where none was published."""

    file: str
    state: State
    sha256: str


@dataclass(frozen=True)
class Removal:
    """`removed` and `kept` are names inside the models folder, `freed` is bytes."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    freed: int


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class Store:
    """The files of a models folder; no path that leaves the folder is ever followed."""

    def __init__(self, models_dir: Path, free: Callable[[Path], int] = free_bytes) -> None:
        self._root = models_dir
        self._free = free

    def path(self, relative: Path) -> Path:
        """Where a file of the models folder lies; InvalidModelFile for one that would lie outside."""
        whole = self._root / relative
        outside = relative.is_absolute() or ".." in relative.parts or not relative.parts
        if outside or not whole.parent.resolve().is_relative_to(self._root.resolve()):
            raise InvalidModelFile(f"{relative.name}: this file would be outside the models folder")
        return whole

    def beside(self, relative: Path, ending: str) -> Path:
        """A file about this file: `beside(path, "json")`."""
        return self.path(Path(STATE) / relative.with_name(f"{relative.name}.{ending}"))

    def make_room_for(self, path: Path) -> Path:
        """This path, its folder made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def state(self, source: Source) -> State:
        """The state of the file that is loaded; `unverified` is usable, as it is the user's own."""
        path = self.path(source.path)
        if path.is_file():
            size = path.stat().st_size
            if source.bytes and not source.rewritten and size != source.bytes:
                return "corrupt"
            return "ready" if self.record(source.path) is not None else "unverified"
        pieces = [piece.downloaded for piece in source.pieces]
        if len(pieces) == 1 and self.unfinished(pieces[0], "verifying"):
            return "verifying"
        if any(self.unfinished(piece) or self.path(piece).is_file() for piece in pieces):
            return "partial"
        return "corrupt" if self.beside(source.path, "corrupt").is_file() else "absent"

    def wanted(self, source: Source) -> bool:
        """True for a file that a pull has to fetch: not usable, or of an older catalog."""
        record = self.record(source.path)
        outdated = record is not None and source.published not in (None, record.sha256)
        return outdated or self.state(source) not in ("ready", "unverified")

    def record(self, relative: Path) -> Record | None:
        """What is known of this file, None if nothing is or if it has changed since."""
        try:
            record = Record(**json.loads(self.beside(relative, "json").read_text(encoding="utf-8")))
            stat = self.path(relative).stat()
        except (OSError, ValueError, TypeError):
            return None
        return record if (record.size, record.mtime_ns) == (stat.st_size, stat.st_mtime_ns) else None

    def note(self, relative: Path, sha256: str, content: str = "") -> None:
        """Record that this file is what it should be."""
        stat = self.path(relative).stat()
        path = self.make_room_for(self.beside(relative, "json"))
        temporary = path.with_name(f"{path.name}.new")
        record = Record(stat.st_size, stat.st_mtime_ns, sha256, content or sha256)
        temporary.write_text(json.dumps(asdict(record)), encoding="utf-8")
        temporary.replace(path)

    def unfinished(self, relative: Path, ending: str = "partial|verifying") -> list[Path]:
        """What has arrived of any content of this file."""
        form = re.compile(rf"{re.escape(relative.name)}\.[0-9a-f]{{16}}\.({ending})")
        folder = self.beside(relative, "json").parent
        return (
            [path for path in sorted(folder.iterdir()) if form.fullmatch(path.name)]
            if folder.is_dir()
            else []
        )

    @contextmanager
    def locked(self, relative: Path) -> Iterator[None]:
        """Be the one who writes this file; ModelBusy while another does."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.exclusive(self.make_room_for(self.beside(relative, "lock"))))
            except locks.Held as held:
                who = f" (process {held.holder})" if held.holder else ""
                raise ModelBusy(
                    f"{relative.name} is being pulled, verified or removed by another process{who};"
                    " try again when it has ended",
                    param="model",
                ) from None
            yield

    def require_space(self, needed: int) -> None:
        """DiskFull, with numbers, if so many more bytes do not fit."""
        self._root.mkdir(parents=True, exist_ok=True)
        free = self._free(self._root)
        if needed and needed + MARGIN > free:
            raise DiskFull(
                f"the disk of the models folder is too full: {size_words(needed)} are still to come and"
                f" {size_words(free)} are free; free {size_words(needed + MARGIN - free)} more, or choose"
                " another folder with --models-dir"
            )

    def verify(self, source: Source, on_progress: OnProgress, published: str | None = None) -> Verdict:
        """Hash the file that is loaded; one with a wrong hash or size is set aside.

        The right hash is the catalog's, else the one recorded, else `published`.
        """
        with self.locked(source.downloaded):
            path, record = self.path(source.path), self.record(source.path)
            found = sha256_of(path, on_progress)
            wrong_size = self.state(source) == "corrupt"
            if source.rewritten:  # what the catalog has is the hash of the file before that
                right = record.content if record else None
            else:
                right = source.sha256 or (record.sha256 if record else None) or published
            if not wrong_size and right in (None, found):
                if right is not None:
                    self.note(source.path, record.sha256 if source.rewritten and record else found, found)
                return Verdict(source.path.as_posix(), "ready" if right else "unverified", found)
            aside = self.make_room_for(self.beside(source.path, "corrupt"))
            path.replace(aside)
            self.beside(source.path, "json").unlink(missing_ok=True)
            return Verdict(source.path.as_posix(), "corrupt", found)

    def remove(self, entries: Iterable[Entry], others: Iterable[Entry]) -> Removal:
        """Delete the files of these entries, and what has arrived of them, but those that `others` use."""
        entries = list(entries)
        for entry in entries:
            if entry.packaged or all(path.is_absolute() for path in entry.files.values()):
                raise UnsupportedOperation(
                    f"model {entry.id!r} does not lie in the models folder", param="model"
                )
        used = {path for other in others for path in other.files.values()}
        sources = [source for entry in entries for source in entry.sources.values()]
        loaded = dict.fromkeys(
            path for entry in entries for path in entry.files.values() if not path.is_absolute()
        )
        originals = [
            piece.downloaded for source in sources if source.path not in used for piece in source.pieces
        ]
        kept = tuple(path.as_posix() for path in loaded if path in used)
        files = list(dict.fromkeys([*(path for path in loaded if path not in used), *originals]))
        removed, freed = [], 0
        with ExitStack() as locks:
            for file in files:
                locks.enter_context(self.locked(file))
            for file in files:
                size = self._delete(file)
                if size is not None:
                    removed.append(file.as_posix())
                    freed += size
        for file in files:
            self._tidy(self.path(file).parent)
            self._tidy(self.beside(file, "lock").parent)
        return Removal(tuple(removed), kept, freed)

    def leftovers(self, relative: Path) -> list[Path]:
        """Unfinished work on this file, and what was set aside."""
        endings = [self.beside(relative, ending) for ending in ("corrupt", "rewriting", "json.new")]
        copies = self.beside(relative, "rewriting")
        halves = copies.parent.glob(f".{_escape(copies.name)}.*") if copies.parent.is_dir() else ()
        return [path for path in [*endings, *halves, *self.unfinished(relative)] if os.path.lexists(path)]

    def _delete(self, relative: Path) -> int | None:
        """Delete a file, or link, and all about it; its size, None if nothing was there."""
        path = self.path(relative)
        found = [path] if os.path.lexists(path) else []
        found += self.leftovers(relative)
        size = sum(one.lstat().st_size for one in found)
        for one in found:
            one.unlink()
        self.beside(relative, "json").unlink(missing_ok=True)
        return size if found else None

    def _tidy(self, folder: Path) -> None:
        """Remove folders that have become empty, up to the models folder."""
        while (
            folder not in (self._root, self._root / STATE) and folder.is_dir() and not any(folder.iterdir())
        ):
            folder.rmdir()
            folder = folder.parent


def sha256_of(path: Path, on_progress: OnProgress) -> str:
    """The hash of a file; `on_progress` may raise to end it."""
    digest, done = hashlib.sha256(), 0
    buffer = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            done += count
            on_progress(done, total)
    return digest.hexdigest()


def size_words(count: float) -> str:
    """Bytes for people: `6.9 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)
