"""`gguf-imagegen convert`: a model in another type, and how near its pictures stay to those of the source."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.catalog.default_model import given_components
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.store import size_words
from gguf_imagegen.commands.tune import INTERRUPTED, work_for
from gguf_imagegen.commands.tuning.measure import Effort, is_flat, make
from gguf_imagegen.commands.tuning.tuner import Work
from gguf_imagegen.engines.conversion import (
    Order,
    checked_target,
    convert,
    replacing,
    require_disk,
    require_room,
)
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.split import join, split_of
from gguf_imagegen.pictures.nearness import SAME, psnr
from gguf_imagegen.planning.conversion import with_file
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import (
    ConversionFailed,
    InsufficientMemory,
    InvalidModelFile,
    InvalidRequest,
    MissingComponent,
)

SIZE: Final = "256x256"
STEPS: Final = 4
"""Of the pictures that are compared: small, for both models make one."""
Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Likeness:
    """`psnr` in dB, None where nothing was compared; `words` say why."""

    psnr: float | None
    words: str


def run_convert(settings: Settings, order: Order, *, check: bool) -> int:
    """Convert, check, and tell; the exit code. The target appears only if all went well."""
    console = Console(stderr=True)
    likeness = Likeness(None, "as --no-check says")
    try:
        with replacing(order.target) as partial:
            require_room(order, checked=settings.memory_check)
            with shown(console) as tell:
                asyncio.run(convert(_engine(settings), order, tell))
                if check:
                    likeness = asyncio.run(compared(settings, order, partial, tell))
    except KeyboardInterrupt:
        return _stopped(console)
    old, new = order.task.source.stat().st_size, order.target.stat().st_size
    print(f"{order.target.name}: {order.task.weights}, {size_words(new)} of {size_words(old)}")
    print(_words(likeness))
    return 0


def run_join(source: Path, target: Path, *, force: bool) -> int:
    """Join the parts of a split model, of which this is the first; the exit code."""
    split = split_of(source)
    if split is None:
        raise InvalidRequest(f"{source.name}: say with --type what to convert it to, such as q8_0")
    target = checked_target(target, split.parts, force=force)
    require_disk(target, split.size)
    console = Console(stderr=True)
    try:
        with replacing(target) as partial, shown(console) as tell:
            join(split, partial, functools.partial(tell, "joining"))
            header = read_header(partial)
    except KeyboardInterrupt:
        return _stopped(console)
    print(f"{target.name}: {len(header.tensors)} tensors of {len(split.parts)} parts")
    return 0


def _stopped(console: Console) -> int:
    console.print("stopped; nothing was written", highlight=False)
    return INTERRUPTED


def _words(likeness: Likeness) -> str:
    if likeness.psnr is None:
        return f"pictures were not compared: {likeness.words}"
    if likeness.psnr >= SAME:
        return "its picture is the source's, to the byte"
    return f"its picture is within {likeness.psnr:.1f} dB PSNR of the source's"


async def compared(settings: Settings, order: Order, result: Path, tell: Tell) -> Likeness:
    """A picture of either model with the same parts, prompt and seed; ConversionFailed if there is none."""
    parts = given_components(settings.component)
    if order.task.vae is not None:
        parts["vae"] = order.task.vae
    try:
        source = entry_of_file(order.task.source, parts)
        source_work = _work(settings, source)
        result_work = _work(settings, with_file(source, result))
    except (InvalidModelFile, MissingComponent, InsufficientMemory) as exc:
        return Likeness(None, str(exc))
    pictures = []
    for number, work in enumerate((source_work, result_work)):
        tell("comparing", number, 2)
        pictures.append(await _picture(_engine(settings), work))
    if is_flat(pictures[0]):
        return Likeness(None, "the source draws one colour, which says nothing")
    if is_flat(pictures[1]):
        raise ConversionFailed("The result draws nothing; take a larger type, or --rules for some tensors.")
    return Likeness(psnr(*pictures), "")


def _work(settings: Settings, entry: Entry) -> Work:
    return work_for(Catalog([entry], settings.models_dir), entry, settings, Effort(STEPS, 0), SIZE)


async def _picture(engine: Engine, work: Work) -> bytes:
    try:
        async for _ in engine.load(work.model):
            pass
        return (await make(engine, work.picture)).image.data
    finally:
        await engine.close()


def _engine(settings: Settings) -> Engine:
    return EngineProcess(stall_timeout=settings.load_timeout)


@contextmanager
def shown(console: Console) -> Iterator[Tell]:
    """One bar on a terminal, a line for each new thing that is done elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    said: set[str] = set()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)
            if not console.is_terminal and what not in said:
                console.print(what, highlight=False)
            said.add(what)

        yield tell
