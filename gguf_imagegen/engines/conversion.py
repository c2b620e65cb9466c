"""A model file written in another type by an engine of its own: whole, or not at all."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

from gguf_imagegen import __version__
from gguf_imagegen.catalog.store import MARGIN, free_bytes, sha256_of, size_words
from gguf_imagegen.machine import locks
from gguf_imagegen.machine.memory import available
from gguf_imagegen.modelfiles.conversion import (
    checked_rules,
    converted_bytes,
    convertible,
    stamp,
    weight_type,
)
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import family_of
from gguf_imagegen.vocabulary.engine import Convert, Engine
from gguf_imagegen.vocabulary.errors import (
    ConversionFailed,
    DiskFull,
    InsufficientMemory,
    InvalidModelFile,
    InvalidRequest,
    ModelBusy,
)
from gguf_imagegen.vocabulary.events import Loading

LOOK_SECONDS: Final = 0.2
PART, LOCK = ".part", ".converting"
"""Endings of what is written beside a target, and of the lock that says that somebody does."""
OnProgress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and the total."""


@dataclass(frozen=True)
class Order:
    """A conversion that was checked; `size` is about what the result takes, in bytes."""

    task: Convert
    target: Path
    size: int


def ordered(
    source: Path, target: Path, kind: str, rules: str = "", vae: Path | None = None, *, force: bool = False
) -> Order:
    """The conversion of `source` to `target`, refused in words if it cannot be done."""
    wanted, checked = weight_type(kind), checked_rules(rules)
    size = sum(converted_bytes(convertible(file), wanted) for file in (source, vae) if file is not None)
    absolute = checked_target(target, filter(None, (source, vae)), force=force)
    task = Convert(source.absolute(), partial_of(absolute), wanted, checked, vae and vae.absolute())
    return Order(task, absolute, size)


def checked_target(target: Path, sources: Iterable[Path], *, force: bool) -> Path:
    """Where the result goes, absolute; InvalidRequest if it cannot go there."""
    if target.suffix.lower() != ".gguf":
        raise InvalidRequest(f"{target.name}: the result is a GGUF file; give it a name that ends in .gguf")
    if target.exists() and any(target.samefile(file) for file in sources):
        raise InvalidRequest(f"{target.name}: the result would replace what it is made from")
    if target.is_dir() or (target.exists() and not force):
        raise InvalidRequest(f"{target.name}: it exists already; --force replaces a file")
    absolute = target.absolute()
    if not absolute.parent.is_dir():
        raise InvalidRequest(f"{target.name}: there is no folder {absolute.parent.name!r} to put it into")
    return absolute


def partial_of(target: Path) -> Path:
    return target.with_name(f".{target.name}{PART}")


def require_disk(target: Path, size: int, free: Callable[[Path], int] = free_bytes) -> None:
    """DiskFull, with numbers, if so many bytes do not fit."""
    there = free(target.parent)
    if size + MARGIN > there:
        raise DiskFull(
            f"{target.name}: the disk is too full: {size_words(size)} are needed and"
            f" {size_words(there)} are free; free {size_words(size + MARGIN - there)} more"
        )


def require_room(
    order: Order,
    free: Callable[[Path], int] = free_bytes,
    *,
    memory: int | None = None,
    checked: bool = True,
) -> None:
    """DiskFull or InsufficientMemory, with numbers: the engine holds all of the result in memory.

    `memory` is how many bytes of it may be used, None for what this machine has; it counts only if `checked`.
    """
    require_disk(order.target, order.size, free)
    memory = available(gpu=None).usable.ram if memory is None else memory
    if checked and order.size > memory:
        raise InsufficientMemory(
            f"{order.target.name}: converting needs {size_words(order.size)} of memory and"
            f" {size_words(memory)} may be used; take a smaller type, or unload other programs"
        )


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """The file to write; it takes the target's place at the end, and is gone if that is not reached.

    What killed conversions left in the folder goes first. Raises ModelBusy while another writes the target.
    """
    partial = partial_of(target)
    sweep(partial.parent)
    try:
        with locks.exclusive(partial.with_suffix(LOCK)):
            try:
                yield partial
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
    except locks.Held:
        raise ModelBusy(f"{target.name} is being written by another conversion") from None


def sweep(folder: Path) -> None:
    """Delete what conversions that were killed have left here."""
    for lock in folder.glob(f".*{LOCK}"):
        with suppress(locks.Held, OSError), locks.exclusive(lock):
            lock.with_suffix(PART).unlink(missing_ok=True)


async def convert(engine: Engine, order: Order, tell: OnProgress) -> None:
    """Write the partial file, with where it comes from in its metadata; the engine is gone afterwards."""
    watch = asyncio.create_task(_watch(order, tell))
    try:
        async for event in engine.run(order.task):
            if isinstance(event, Loading):
                tell("reading", event.done, event.total)
    finally:
        watch.cancel()
        await engine.close()
    _require_whole(order)
    await asyncio.to_thread(_finish, order, tell)


def _finish(order: Order, tell: OnProgress) -> None:
    stamp(order.task.target, provenance(order.task, tell))
    _require_whole(order)
    with order.task.target.open("rb") as file:
        os.fsync(file.fileno())


def provenance(task: Convert, tell: OnProgress) -> dict[str, str]:
    """What the metadata say: names of files, never where they lie."""
    made = {
        "general.quantized_by": f"gguf-imagegen {__version__} (stable-diffusion.cpp)",
        "gguf_imagegen.type": task.weights,
        "gguf_imagegen.rules": task.rules,
        "gguf_imagegen.source": task.source.name,
        "gguf_imagegen.source_sha256": sha256_of(task.source, functools.partial(tell, "hashing")),
        "gguf_imagegen.vae": task.vae.name if task.vae else "",
        "gguf_imagegen.converted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return {key: value for key, value in made.items() if value}


async def _watch(order: Order, tell: OnProgress) -> None:
    """The engine says nothing while it writes, but the file grows."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        with suppress(FileNotFoundError):
            tell("writing", min(order.task.target.stat().st_size, order.size), order.size)


def _require_whole(order: Order) -> None:
    """The file has all the bytes that its header promises, and holds what its source held.

    Tensors may be missing: the engine leaves out those that it never uses.
    """
    source = read_header(order.task.source)
    try:
        found = read_header(order.task.target)
    except InvalidModelFile as exc:
        if free_bytes(order.target.parent) < MARGIN:
            raise DiskFull(f"{order.target.name}: the disk is full; free some space and try again") from exc
        raise ConversionFailed(f"The engine wrote a file that is not whole: {exc}") from exc
    if family_of(found) != family_of(source):
        raise ConversionFailed(f"The engine lost tensors of {source.name}: the result is of no use.")
