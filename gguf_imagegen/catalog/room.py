"""Whether a model has room on this machine, which quantisation to take, and when to decode in tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.fit import (
    Available,
    Estimate,
    Files,
    Verdict,
    available,
    best_quant,
    estimate,
    verdict,
)
from gguf_imagegen.catalog.header import Header
from gguf_imagegen.catalog.inspect import inspect_file
from gguf_imagegen.engine.protocol import Role
from gguf_imagegen.errors import InsufficientMemory, InvalidModelFile
from gguf_imagegen.settings import Settings


def verdict_of(entry: Entry, files: Files, settings: Settings, free: Available) -> Verdict:
    """Where there is a GPU, the better verdict of both memories.

    Which of them the engine uses is known only when it has loaded a model: nothing that may work is refused.
    """
    verdicts = [
        verdict(_estimate(entry, files, settings, gpu), free) for gpu in (True, False) if free.vram or not gpu
    ]
    return next((each for each in verdicts if each.fits), verdicts[0])


@dataclass(frozen=True)
class Room:
    """Bytes of main memory that a model of default size needs, those that are free, and whether that does."""

    needs: int
    free: int
    fits: bool


def room_for(catalog: Catalog, entry: Entry, settings: Settings, free: Available) -> Room | None:
    """By headers of files that are here, else by sizes; None where one is unknown, or it cannot be run."""
    sizes = sizes_of(catalog, entry)
    if entry.unsupported or not sizes or not all(sizes.values()):
        return None
    files: Files = _headers(catalog, entry) if catalog.on_disk(entry) else sizes
    gpu = bool(free.vram)
    memory = _estimate(entry, files, settings, gpu).memory(tiling=True)
    needs, there = (memory.vram, free.vram or 0) if gpu else (memory.ram, free.ram)
    return Room(needs, there, verdict_of(entry, files, settings, free).fits)


@dataclass(frozen=True)
class Quant:
    """A quantisation, `name` as `pull` takes it; None is for what is not known without asking the hub."""

    name: str
    on_disk: bool
    bytes: int | None
    fits: bool | None


def quant_of(catalog: Catalog, entry: Entry, settings: Settings, free: Available) -> Quant:
    sizes, room = sizes_of(catalog, entry), room_for(catalog, entry, settings, free)
    known = sum(sizes.values()) if sizes and all(sizes.values()) else None
    return Quant(entry.name, catalog.on_disk(entry), known, room.fits if room else None)


def _headers(catalog: Catalog, entry: Entry) -> Files:
    """A file that cannot be read counts by its size: `inspect` and a load say what is wrong with it."""
    files: dict[Role, Header | int] = {}
    for role, path in catalog.paths(entry).items():
        stat = path.stat()
        try:
            files[role] = _header(path, stat.st_size, stat.st_mtime_ns)
        except InvalidModelFile:
            files[role] = stat.st_size
    return files


@lru_cache(64)
def _header(path: Path, size: int, changed: int) -> Header:
    return inspect_file(path)


def sizes_of(catalog: Catalog, entry: Entry) -> dict[Role, int]:
    """Bytes of each file, of the disk or as the catalog states them; 0 where neither knows."""
    stated = {role: source.bytes or 0 for role, source in entry.sources.items()}
    found = {role: path.stat().st_size for role, path in catalog.paths(entry).items() if path.is_file()}
    return {**dict.fromkeys(entry.files, 0), **stated, **found}


def refusal(entry: Entry, found: Verdict, smaller: str | None = None) -> InsufficientMemory:
    """With numbers, and with what could be done."""
    advice = [f"take {entry.id}:{smaller}"] if smaller else ["take a smaller quantisation"]
    advice += ["unload other models or programs", "or start the server with --no-memory-check"]
    return InsufficientMemory(f"model {entry.name!r} {found.words}: {', '.join(advice)}", param="model")


def next_best(catalog: Catalog, entry: Entry, settings: Settings, free: Available) -> str | None:
    """The best other quantisation of a model that fits, by the sizes that the catalog states."""
    if not entry.quant:
        return None
    others = {each.quant: each for each in catalog.quants(entry.id) if _download_bytes(each)}
    others.pop(entry.quant, None)
    return _best(others, settings, free)


SizesOf = Callable[[Iterable[Source]], Mapping[Path, int]]
"""Bytes of files whose size the catalog does not state, by `Source.path`, as far as they can be had."""


def choose_quant(
    catalog: Catalog, name: str, settings: Settings, sizes_of: SizesOf = lambda sources: {}
) -> Entry:
    """The model that ID or ID:QUANT means; for an ID alone that is not here, the best quantisation that fits.

    Where no sizes are known, that is the catalog's first. InsufficientMemory if not even the smallest fits.
    """
    entry = catalog.get(name)
    if ":" in name or catalog.on_disk(entry) or not settings.memory_check:
        return entry
    quants = catalog.quants(entry.id)
    unstated = {s.path: s for each in quants for s in each.sources.values() if not s.bytes}
    asked = sizes_of(unstated.values()) if unstated else {}
    known = {each.quant: each for each in (_sized(each, asked) for each in quants) if _download_bytes(each)}
    if not known:
        return entry
    free = available()
    best = _best(known, settings, free)
    if best is None:
        smallest = min(known.values(), key=_download_bytes)
        raise refusal(smallest, verdict_of(smallest, _sizes(smallest), settings, free))
    return next(each for each in quants if each.quant == best)


def _sized(entry: Entry, sizes: Mapping[Path, int]) -> Entry:
    """The same entry, knowing more sizes."""
    sources = {
        role: source if source.bytes else source.model_copy(update={"bytes": sizes.get(source.path)})
        for role, source in entry.sources.items()
    }
    return entry.model_copy(update={"sources": sources})


def needs_tiling(entry: Entry, files: Files, width: int, height: int, free: Available, backend: str) -> bool:
    """Whether a loaded model can decode a picture of this size in tiles only."""
    wanted = estimate(files, entry.family, width, height, gpu=backend != "CPU")
    room = free.ram if backend == "CPU" or free.vram is None else free.vram
    return wanted.decode_tiled < wanted.decode and wanted.decode > room


def _best(quants: Mapping[str, Entry], settings: Settings, free: Available) -> str | None:
    by_size = {_download_bytes(each): each for each in quants.values()}

    def estimate_of(size: int) -> Estimate:
        each = by_size[size]
        return _estimate(each, _sizes(each), settings, gpu=bool(free.vram))

    return best_quant([(quant, _download_bytes(each)) for quant, each in quants.items()], estimate_of, free)


def _estimate(entry: Entry, files: Files, settings: Settings, gpu: bool) -> Estimate:
    width, height = entry.defaults.size
    return estimate(
        files, entry.family, width, height,
        gpu=gpu,
        offload_to_cpu=settings.offload_to_cpu,
        vae_on_cpu=settings.vae_on_cpu,
        text_encoders_on_cpu=settings.text_encoders_on_cpu,
        flash_attention=settings.flash_attention,
    )  # fmt: skip


def _sizes(entry: Entry) -> Files:
    return {role: source.bytes for role, source in entry.sources.items() if source.bytes}


def _download_bytes(entry: Entry) -> int:
    """Bytes of all files, 0 if the size of one is not known."""
    sizes = [source.bytes or 0 for source in entry.sources.values()]
    return sum(sizes) if all(sizes) else 0
