"""Pulling a model: its missing files from the hub, resumed, verified and put in their place."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gguf_imagegen.catalog.entry import Source, hash_of_parts
from gguf_imagegen.catalog.store import Store, sha256_of
from gguf_imagegen.download.hub import Remote
from gguf_imagegen.download.hubs import Hubs
from gguf_imagegen.download.progress import (
    FileReady,
    Meter,
    Planned,
    PullEvent,
    Rewriting,
    Verifying,
    at_intervals,
)
from gguf_imagegen.machine.files import append_flags
from gguf_imagegen.modelfiles.rename import rename_text_encoders
from gguf_imagegen.modelfiles.split import join_parts
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    CorruptFile,
    DiskFull,
    HubFailed,
    HubFileChanged,
    ImagegenError,
    PullFailed,
)

AT_ONCE = 3
"""Files that are fetched at the same time: one connection seldom fills a line, many annoy a server."""
ATTEMPTS = 5
"""A file is given up after so many attempts in a row that brought less than ENOUGH bytes."""
ENOUGH = 1 << 16
LONGEST_PAUSE = 60.0

Result = TypeVar("Result")


class Pull:
    """Files on their way, those of one model; `run` blocks, `cancel` may come from any thread.

    `on_event` is called from the threads that fetch. `pause` is the first wait before a new attempt, seconds.
    """

    def __init__(
        self,
        store: Store,
        sources: Iterable[Source],
        on_event: Callable[[PullEvent], None],
        pause: float = 0.5,
    ) -> None:
        self._store = store
        self._sources = list({source.path: source for source in sources}.values())
        self._tell = on_event
        self._pause = pause
        self._hub = Hubs()
        self._stop = threading.Event()

    def cancel(self) -> None:
        """End it; what has arrived stays. Takes at most the hub's time-out, mostly no time."""
        self._stop.set()
        self._hub.hang_up()

    def run(self) -> None:
        """Fetch what is missing; PullFailed, ModelBusy or Cancelled if it cannot be."""
        sources = self._sources
        with ExitStack() as locks, disk_errors():
            for source in sorted(sources, key=lambda source: source.path):
                if self._store.wanted(source):
                    locks.enter_context(self._store.locked(source.downloaded))
            missing = [source for source in sources if self._store.wanted(source)]
            for source in sources:
                if source not in missing:
                    self._tell(FileReady(source.path.as_posix(), fetched=False))
            remotes = {
                piece.downloaded: self._look(piece)
                for source in missing
                for piece in source.pieces
                if not (source.rewritten and self._has(piece))
            }
            self._plan(missing, remotes)
            self._fetch_all(missing, remotes)

    def _look(self, source: Source) -> Remote:
        """What the hub has, which must be what the catalog describes."""
        remote = self._patiently(lambda: self._hub.look(source))
        for what, here, there in (
            ("sha256", source.sha256, remote.sha256), ("size", source.bytes, remote.size),
        ):  # fmt: skip
            if here is not None and there is not None and here != there:
                raise HubFileChanged(
                    f"{source.file}: the hub's file is not the one of the catalog, whose {what} is {here};"
                    f" it was changed in {source.url}"
                )
        return remote

    def _has(self, piece: Source) -> bool:
        """Whether what is to be rewritten is here as the hub has it."""
        record = self._store.record(piece.downloaded)
        return record is not None and piece.sha256 in (None, record.sha256)

    def _plan(self, missing: list[Source], remotes: dict[Path, Remote]) -> None:
        done = needed = 0
        files: list[tuple[str, int]] = []
        for source in missing:
            sizes = self._sizes(source, remotes)
            here = sum(
                min(self._arrived(piece, remotes[piece.downloaded]), size)
                if piece.downloaded in remotes
                else size
                for piece, size in zip(source.pieces, sizes, strict=True)
            )
            size = sum(sizes)
            done += here
            needed += size - here + (size if source.rewritten else 0)
            files.append((source.path.as_posix(), size))
        self._store.require_space(needed)
        self._tell(Planned(tuple(files), done, sum(size for _, size in files)))

    def _sizes(self, source: Source, remotes: dict[Path, Remote]) -> list[int]:
        """Of its pieces, in bytes."""
        places = [piece.downloaded for piece in source.pieces]
        return [
            remotes[place].size if place in remotes else self._store.path(place).stat().st_size
            for place in places
        ]

    def _arrived(self, piece: Source, remote: Remote) -> int:
        return sum(
            _size(self._store.beside(piece.downloaded, f"{remote.key}.{ending}"))
            for ending in ("partial", "verifying")
        )

    def _fetch_all(self, missing: list[Source], remotes: dict[Path, Remote]) -> None:
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="pull") as pool:
            futures = [pool.submit(self._fetch, source, remotes) for source in missing]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # also at Ctrl-C; after a success there is nothing left to cancel
                self.cancel()
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise next((error for error in errors if not isinstance(error, Cancelled)), errors[0])

    def _fetch(self, source: Source, remotes: dict[Path, Remote]) -> None:
        before, sizes = 0, self._sizes(source, remotes)
        for piece, size in zip(source.pieces, sizes, strict=True):
            if remote := remotes.get(piece.downloaded):
                one = _Piece(piece, remote, source.path.as_posix(), before, sum(sizes))
                self._download(one)
                self._verify(one)
            before += size
        if source.rewritten:
            self._rewrite(source)
        for left in self._store.leftovers(source.path):
            left.unlink()
        self._tell(FileReady(source.path.as_posix(), fetched=True))

    def _download(self, piece: _Piece) -> None:
        """Bytes to `.partial`, which becomes `.verifying` when it is whole."""
        source, remote = piece.source, piece.remote
        whole = self._store.beside(source.downloaded, f"{remote.key}.verifying")
        partial = self._store.make_room_for(self._store.beside(source.downloaded, f"{remote.key}.partial"))
        for old in self._store.unfinished(source.downloaded):
            if old not in (whole, partial) or _size(old) > remote.size:
                old.unlink()
        if _size(whole) == remote.size:
            return
        meter = Meter(piece.name, piece.total, self._tell)
        if _size(partial) < remote.size:
            self._patiently(lambda: self._append(piece, partial, meter), lambda: _size(partial))
        partial.replace(whole)

    def _append(self, piece: _Piece, partial: Path, meter: Meter) -> None:
        source, remote = piece.source, piece.remote
        with (
            self._hub.bytes_from(source, remote, _size(partial)) as (start, chunks),
            os.fdopen(os.open(partial, append_flags(), 0o644), "wb", buffering=0) as file,
        ):
            file.truncate(start)
            file.seek(start)
            done = start
            meter.start(piece.before + done)
            self._check()
            for chunk in chunks:
                self._check()
                done += len(chunk)
                if done > remote.size:
                    raise CorruptFile(
                        f"{source.file}: the hub sends more than the {remote.size} bytes it named"
                    )
                _write_all(file.fileno(), chunk)
                meter.at(piece.before + done)
            if done < remote.size:
                raise HubFailed(
                    f"{source.file}: the hub sent {done} of {remote.size} bytes; pull again to go on"
                )
            os.fsync(file.fileno())

    def _patiently(self, act: Callable[[], Result], arrived: Callable[[], int] = lambda: 0) -> Result:
        """Try again after errors that may pass, with growing pauses, as long as something arrives."""
        failures = 0
        while True:
            before = arrived()
            try:
                self._check()
                return act()
            except ImagegenError as exc:
                self._check()
                failures = 0 if arrived() - before >= ENOUGH else failures + 1
                if not exc.should_retry or failures >= ATTEMPTS:
                    raise
                self._stop.wait(min(exc.retry_after or self._pause * 2**failures, LONGEST_PAUSE))

    def _verify(self, piece: _Piece) -> None:
        """Into its place if the hash is right; deleted if not."""
        source, remote = piece.source, piece.remote
        report = self._reporter(Verifying, piece.name)
        whole = self._store.beside(source.downloaded, f"{remote.key}.verifying")
        found = sha256_of(whole, lambda done, _: report(piece.before + done, piece.total))
        right = source.sha256 or remote.sha256
        if right not in (None, found):
            whole.unlink()
            raise CorruptFile(
                f"{source.file}: what came from the hub has the sha256 {found}, and it should be {right};"
                " it was deleted, pull again"
            )
        whole.replace(self._store.make_room_for(self._store.path(source.downloaded)))
        if right is not None:
            self._store.note(source.downloaded, found)

    def _rewrite(self, source: Source) -> None:
        """The file that is loaded from the one that was fetched, which is then deleted."""
        name, places = source.path.as_posix(), [piece.downloaded for piece in source.pieces]
        original, *_ = originals = [self._store.path(place) for place in places]
        hashes = [record.sha256 for record in map(self._store.record, places) if record]
        copy = self._store.beside(source.path, "rewriting")
        for left in self._store.leftovers(source.path):
            left.unlink()
        if source.parts:
            join_parts(original, copy, self._reporter(Rewriting, name))
        else:
            rename_text_encoders(original, copy, self._reporter(Rewriting, name))
        content = sha256_of(copy, self._reporter(Verifying, name))
        copy.replace(self._store.path(source.path))
        if len(hashes) == len(places):
            published = hash_of_parts(hashes) if source.parts else hashes[0]
            self._store.note(source.path, published, content)
        for place, original in zip(places, originals, strict=True):
            original.unlink()
            self._store.beside(place, "json").unlink(missing_ok=True)

    def _reporter(self, make: Callable[[str, int, int], PullEvent], name: str) -> Callable[[int, int], None]:
        tell = at_intervals(make, name, self._tell)

        def report(done: int, total: int) -> None:
            self._check()
            tell(done, total)

        return report

    def _check(self) -> None:
        if self._stop.is_set():
            raise Cancelled("the pull was cancelled; pull again to go on from there")


@dataclass(frozen=True)
class _Piece:
    """What is fetched for the file `name`, of `total` bytes: those after the first `before`."""

    source: Source
    remote: Remote
    name: str
    before: int
    total: int


@contextmanager
def disk_errors() -> Iterator[None]:
    """The system's errors of writing as ours."""
    try:
        yield
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"the disk of the models folder is full: {reason}; make room and pull again"
            ) from exc
        if exc.errno == errno.EFBIG:
            raise DiskFull(f"the models folder cannot hold so large a file: {reason}") from exc
        raise PullFailed(
            f"the models folder cannot be written: {reason}; choose another with --models-dir"
        ) from exc


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


def _write_all(handle: int, data: bytes) -> None:
    """Unbuffered, so that what has arrived survives a kill; a disk that fills up takes less than given."""
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]
