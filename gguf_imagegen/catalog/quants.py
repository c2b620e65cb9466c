"""What is known of the models and their quantisations at one moment, and which of them to take."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.memory import Files
from gguf_imagegen.catalog.store import STATE, Store
from gguf_imagegen.catalog.store import State as FileState
from gguf_imagegen.catalog.verdict import Verdict, refusal, verdict_of
from gguf_imagegen.machine.memory import Available, available, usable
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.modelfiles.inspect import inspect_file
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile

State = Literal["absent", "partial", "corrupt", "ready"]


@dataclass(frozen=True)
class Room:
    """Bytes that a picture of the model's own size needs, those that are free, and the usable part."""

    needs: int
    free: int
    usable: int
    fits: bool


@dataclass(frozen=True)
class Quant:
    """A quantisation, `name` as `pull` takes it; None is for what is not known without asking the hub.

    `bytes` are those of all its files, `download_bytes` of those that are not here.
    """

    name: str
    on_disk: bool
    state: State
    gated: bool
    bytes: int | None
    download_bytes: int | None
    fits: bool | None
    memory: Room | None


def best_of(quants: Sequence[Quant]) -> Quant:
    """What an ID alone means: the one on disk; else the largest that fits, a gated one if no other may fit.

    Where none fits that is the smallest, and where no sizes are known the first.
    """
    if here := [each for each in quants if each.on_disk]:
        return here[0]
    free = [each for each in quants if not each.gated] or quants
    fitting = [each for each in free if each.fits]
    if not fitting and all(each.fits is False for each in free):
        fitting = [each for each in quants if each.fits]
    if fitting:
        return max(fitting, key=lambda each: each.bytes or 0)
    return min(free, key=lambda each: each.bytes or math.inf)


class Survey:
    """The models as they are now: each file, and the free memory, is looked at once.

    `asked` are sizes that the catalog does not state, by `Source.path`.
    """

    def __init__(
        self,
        catalog: Catalog,
        settings: Settings,
        free: Available | None = None,
        asked: Mapping[Path, int] | None = None,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._free = free or available()
        self._asked = asked or {}
        self._store = Store(catalog.models_dir)
        self._sizes: dict[Path, int | None] = {}
        self._fetched: dict[Path, bool] = {}
        self._states: dict[Path, FileState] = {}

    def quants(self, id: str) -> list[Quant]:
        """All quantisations of a model, in the catalog's order."""
        return [self.quant(entry) for entry in self._catalog.quants(id)]

    def quant(self, entry: Entry) -> Quant:
        paths = self._catalog.paths(entry)
        here, sizes = self._bytes(entry)
        known = bool(sizes) and all(sizes.values())
        on_disk = bool(paths) and here.keys() >= entry.required.keys()
        room = None
        if known and not entry.unsupported:
            found = self._verdict(entry, _headers(paths) if on_disk else sizes)
            room = Room(found.needs, found.free, usable(found.free), found.fits)
        total = sum(sizes.values())
        return Quant(
            name=entry.name,
            on_disk=on_disk,
            state=self._state(entry, here, on_disk),
            gated=any(source.gated for source in entry.sources.values()),
            bytes=total if known else None,
            download_bytes=total - sum(here.values()) if known else None,
            fits=room.fits if room else None,
            memory=room,
        )

    def words(self, entry: Entry) -> str:
        """What it takes of the memory, to complete "the model ..."; unknown sizes count as none."""
        return self._verdict(entry, self._bytes(entry)[1]).words

    def refuse(self, entry: Entry) -> None:
        """Raise InsufficientMemory for a model that is not here and does not fit."""
        raise refusal(entry, self._verdict(entry, self._bytes(entry)[1]), self.next_best(entry))

    def next_best(self, entry: Entry) -> str | None:
        """The name of what fits: another quantisation of this model, else another model for the same work."""
        here = [each for each in self.quants(entry.id) if each.name != entry.name]
        models = [
            each.id
            for each in self._catalog.entries
            if each.sources and not each.unsupported and each.id != entry.id
            if entry.capabilities[0] in each.capabilities
        ]
        for quants in (here, (quant for id in models for quant in self.quants(id))):
            fitting = [each for each in quants if each.fits]
            if fitting:
                best = max(fitting, key=lambda each: (each.on_disk, not each.gated, each.bytes or 0))
                return best.name
        return None

    def _verdict(self, entry: Entry, files: Files) -> Verdict:
        return verdict_of(entry, files, self._settings, self._free)

    def _bytes(self, entry: Entry) -> tuple[Mapping[Role, int], Mapping[Role, int]]:
        """Of the files that are here, and of all, 0 where neither catalog nor hub state it."""
        here: dict[Role, int] = {}
        sizes: dict[Role, int] = {}
        for role, path in self._catalog.paths(entry).items():
            source, size = entry.sources.get(role), self._size(path)
            if size is not None:
                here[role] = size
            sizes[role] = size or (source.bytes or self._asked.get(source.path, 0) if source else 0)
        return here, sizes

    def _size(self, path: Path) -> int | None:
        """None if it is not here."""
        if path not in self._sizes:
            self._sizes[path] = path.stat().st_size if path.is_file() else None
        return self._sizes[path]

    def _state(self, entry: Entry, here: Mapping[Role, int], on_disk: bool) -> State:
        """`corrupt` and `partial` only where the main file has been fetched at least in part."""
        sources = list(entry.sources.values())
        main = self._file_state(sources[0]) if sources else "absent"
        if main == "absent" or not sources:
            return "ready" if on_disk else "absent"
        if any(self._file_state(source) == "corrupt" for source in sources):
            return "corrupt"
        return "ready" if on_disk else "partial"

    def _file_state(self, source: Source) -> FileState:
        if source.path not in self._states:
            if source.folder not in self._fetched:
                root = self._catalog.models_dir
                self._fetched[source.folder] = any(
                    (folder / source.folder).is_dir() for folder in (root, root / STATE)
                )
            fetched = self._fetched[source.folder]
            self._states[source.path] = self._store.state(source) if fetched else "absent"
        return self._states[source.path]


def _headers(paths: Mapping[Role, Path]) -> Files:
    """A file that cannot be read counts by its size: `inspect` and a load say what is wrong with it."""
    files: dict[Role, Header | int] = {}
    for role, path in paths.items():
        stat = path.stat()
        try:
            files[role] = _header(path, stat.st_size, stat.st_mtime_ns)
        except InvalidModelFile:
            files[role] = stat.st_size
    return files


@lru_cache(64)
def _header(path: Path, size: int, changed: int) -> Header:
    return inspect_file(path)


SizesOf = Callable[[Iterable[Source]], Mapping[Path, int]]
"""Bytes of files whose size the catalog does not state, by `Source.path`, as far as they can be had."""


def choose_quant(
    catalog: Catalog, name: str, settings: Settings, sizes_of: SizesOf = lambda sources: {}
) -> Entry:
    """The model that ID or ID:QUANT means; for an ID alone that is not here, the best quantisation that fits.

    InsufficientMemory if the named one, or not even the smallest, fits.
    """
    entry = catalog.get(name)
    if catalog.on_disk(entry) or not settings.memory_check:
        return entry
    entries = {each.name: each for each in ([entry] if ":" in name else catalog.quants(entry.id))}
    unstated = {s.path: s for each in entries.values() for s in each.sources.values() if not s.bytes}
    survey = Survey(catalog, settings, asked=sizes_of(unstated.values()) if unstated else {})
    chosen = best_of([survey.quant(each) for each in entries.values()])
    if chosen.fits is False:
        survey.refuse(entries[chosen.name])
    return entries[chosen.name]
