"""`gguf-imagegen convert`: a model in another type, and how near its pictures stay to those of the source."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from gguf_imagegen.catalog.catalog import entry_of_file
from gguf_imagegen.catalog.default_model import given_components
from gguf_imagegen.catalog.store import size_words
from gguf_imagegen.commands.tune import INTERRUPTED
from gguf_imagegen.engines.conversion import (
    OnProgress,
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
from gguf_imagegen.pictures.nearness import SAME
from gguf_imagegen.planning.conversion import with_file
from gguf_imagegen.pool.comparison import Likeness, compared
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import (
    InvalidModelFile,
    InvalidRequest,
    MissingComponent,
)


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
                    likeness = asyncio.run(_compared(settings, order, partial, tell))
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


async def _compared(settings: Settings, order: Order, result: Path, tell: OnProgress) -> Likeness:
    """With the parts that the command names."""
    parts = given_components(settings.component)
    if order.task.vae is not None:
        parts["vae"] = order.task.vae
    try:
        source = entry_of_file(order.task.source, parts)
    except (InvalidModelFile, MissingComponent) as exc:
        return Likeness(None, str(exc))
    return await compared(source, with_file(source, result), settings, lambda: _engine(settings), tell)


def _engine(settings: Settings) -> Engine:
    return EngineProcess(stall_timeout=settings.load_timeout)


@contextmanager
def shown(console: Console) -> Iterator[OnProgress]:
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
