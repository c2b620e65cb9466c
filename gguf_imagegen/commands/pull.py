"""Pull, verify and remove from the command line: which files, and progress for people on stderr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from gguf_imagegen.catalog.address import address_of
from gguf_imagegen.catalog.catalog import Catalog, load_catalog
from gguf_imagegen.catalog.default_model import catalog_for, names_file, names_folder
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.catalog.kept import keep
from gguf_imagegen.catalog.quants import choose_quant
from gguf_imagegen.catalog.store import Removal, Store, size_words
from gguf_imagegen.commands.consent import agreed
from gguf_imagegen.download.hubs import Hubs
from gguf_imagegen.download.progress import (
    Downloading,
    FileReady,
    Planned,
    PullEvent,
    Rewriting,
    Verifying,
    at_intervals,
)
from gguf_imagegen.download.pull import Pull
from gguf_imagegen.download.targets import sizes_on_hub, to_pull, to_remove
from gguf_imagegen.machine.devices import NOWHERE
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import component_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ModelNotDownloaded, PullFailed

Show = Callable[[PullEvent], None]
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def pull(settings: Settings, name: str) -> int:
    """Fetch what is missing of a model, or a component, with progress; the exit code.

    A model of a repository that the catalog does not know is shown first, and kept in the user's catalog.
    """
    return _pull(settings, name, load_catalog(settings.models_dir, settings.catalog), settings.component)


def _pull(settings: Settings, name: str, catalog: Catalog, components: tuple[str, ...] = ()) -> int:
    console = Console(stderr=True)
    component = catalog.component(name)
    if component is None and catalog.knows(name) and catalog.get(name).packaged:
        console.print(f"{name} comes with the package; nothing to download", highlight=False)
        return 0
    console.print(f"looking for {name} on the hub", highlight=False)
    if component is not None:
        sources: Iterable[Source] = [component]
    else:
        target = to_pull(catalog, name, settings, components)
        name, sources = target.entry.name, target.entry.sources.values()
        if target.new:
            if not agreed(console, target, catalog, settings):
                return 1
            keep(settings.models_dir, target.new)
    try:
        with shown(console) as show:
            Pull(Store(settings.models_dir), sources, show).run()
    except KeyboardInterrupt:
        console.print(f"stopped; `gguf-imagegen pull {name}` goes on from there", highlight=False)
        return INTERRUPTED
    console.print(f"{name} is on this machine", highlight=False)
    if component is not None:
        console.print(_offered(settings, name, component), highlight=False, markup=False, soft_wrap=True)
    return 0


def _offered(settings: Settings, name: str, source: Source) -> str:
    """How a component is used, in words; LoRAs and upscalers get a link of their name in their folder."""
    path = Store(settings.models_dir).path(source.path).absolute()
    kind = "upscaler" if path.suffix == ".pth" else component_of(read_header(path))
    if kind not in ("lora", "upscaler"):
        return f"it lies at {path}; use it with: --component {kind}={path}"
    chosen = settings.lora_dir if kind == "lora" else settings.upscaler_dir
    folder = (chosen or settings.models_dir / f"{kind}s").absolute()
    link = folder / f"{name}{path.suffix}"
    folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(link):
        link.symlink_to(os.path.relpath(path, folder.resolve()))
    elif not link.exists() or not link.samefile(path):
        return f"it lies at {path}; {link} is another file, and stays as it is"
    return f"requests can name it {name!r} when the server has: --{kind}-dir {folder}"


def pull_missing(settings: Settings) -> int:
    """Before serving: pull the model that is served, if it is one of a hub and not on this machine."""
    if names_file(settings.model) or names_folder(settings):
        return 0
    if settings.devices == NOWHERE and address_of(settings.model) is None:
        return 0
    plain = load_catalog(settings.models_dir, settings.catalog)
    if address_of(settings.model) is not None and not plain.knows(settings.model):
        return _pull(settings, settings.model, plain, settings.component)
    catalog = catalog_for(settings)
    with Console(stderr=True).status(f"looking for {settings.model}"):
        entry = choose_quant(catalog, settings.model, settings, sizes_on_hub)
    if catalog.on_disk(entry) or entry.unsupported or not entry.sources:
        return 0
    return _pull(settings, entry.name, catalog)


def pull_address(settings: Settings) -> int:
    """Before a picture: pull the model whose address is given; what has an id is pulled by `pull`."""
    return pull_missing(settings) if address_of(settings.model) is not None else 0


def remove(settings: Settings, name: str) -> Removal:
    """Delete the files of a model that no other model on this machine uses."""
    catalog = load_catalog(settings.models_dir, settings.catalog)
    removal = Store(settings.models_dir).remove(*to_remove(catalog, name))
    if not removal.removed:
        raise ModelNotDownloaded(f"model {name!r} has no files of its own on this machine", param="model")
    return removal


def verify(settings: Settings, name: str) -> int:
    """Hash the files of a model that are here; exit code 1 if one is wrong."""
    catalog, store = load_catalog(settings.models_dir, settings.catalog), Store(settings.models_dir)
    entries, _ = to_remove(catalog, name)
    sources = {source.path: source for entry in entries for source in entry.sources.values()}
    here = [source for source in sources.values() if store.path(source.path).is_file()]
    if all(entry.packaged for entry in entries):
        print(f"{name} comes with the package; there is no source to verify it against")
        return 0
    if not here:
        raise ModelNotDownloaded(
            f"model {name!r} has no files on this machine that could be verified", param="model"
        )
    bad = 0
    with shown(Console(stderr=True)) as show:
        for source in here:
            tell = at_intervals(Verifying, source.path.as_posix(), show)
            verdict = store.verify(source, tell, _published(store, source))
            words = {
                "ready": "as published",
                "corrupt": "WRONG, set aside; pull the model again",
            }.get(verdict.state, f"no hash is published for it; its sha256 is {verdict.sha256}")
            print(f"{verdict.file}: {words}")
            bad += verdict.state == "corrupt"
    return int(bad > 0)


def _published(store: Store, source: Source) -> str | None:
    """The hub's hash, asked for only where neither catalog nor record have one."""
    if source.rewritten or source.sha256 or store.record(source.path):
        return None
    try:
        return Hubs().look(source).sha256
    except PullFailed:
        return None


@contextmanager
def shown(console: Console) -> Iterator[Show]:
    """Bars on a terminal, a line for each tenth of a file elsewhere."""
    if not console.is_terminal:
        yield Lines(console).show
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield Bars(progress).show


class Bars:
    """One bar for each file."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def show(self, event: PullEvent) -> None:
        match event:
            case Planned(files=files):
                for file, size in files:
                    self._task(file, size)
            case Downloading(file=file, done=done, total=total):
                self._update(file, done, total, transfer_words(event))
            case Verifying(file=file, done=done, total=total):
                self._update(file, done, total, "verifying")
            case Rewriting(file=file, done=done, total=total):
                self._update(file, done, total, "rewriting")
            case FileReady(file=file, fetched=fetched):
                self._update(file, 1, 1, "done" if fetched else "is here")

    def _task(self, file: str, total: int | None) -> TaskID:
        if file not in self._tasks:
            self._tasks[file] = self._progress.add_task(_short(file), total=total, words="waiting")
        return self._tasks[file]

    def _update(self, file: str, done: int, total: int, words: str) -> None:
        self._progress.update(self._task(file, total), completed=done, total=total, words=words)


class Lines:
    """For logs: a line for each tenth of each file, and for each new thing that is done with it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, tuple[str, int]] = {}

    def show(self, event: PullEvent) -> None:
        match event:
            case Planned(files=files, done=done, total=total):
                if files:
                    self._print(
                        f"{len(files)} files, {size_words(total - done)} of {size_words(total)} to come"
                    )
            case Downloading(file=file, done=done, total=total):
                self._tenth(file, "fetched", done, total, transfer_words(event))
            case Verifying(file=file, done=done, total=total):
                self._tenth(file, "verified", done, total, "")
            case Rewriting(file=file, done=done, total=total):
                self._tenth(file, "rewritten", done, total, "")
            case FileReady(file=file, fetched=fetched):
                self._print(f"{_short(file)}: {'done' if fetched else 'is here'}")

    def _tenth(self, file: str, what: str, done: int, total: int, words: str) -> None:
        tenth = (what, 10 * done // max(total, 1))
        if self._said.get(file) != tenth:
            self._said[file] = tenth
            self._print(f"{_short(file)}: {10 * tenth[1]} % {what}{', ' if words else ''}{words}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def transfer_words(event: Downloading) -> str:
    """`1.2 GB of 6.9 GB, 45 MB/s, 2:07 left`."""
    words = f"{size_words(event.done)} of {size_words(event.total)}, {size_words(event.speed)}/s"
    if event.eta is None or event.done == event.total:
        return words
    minutes, seconds = divmod(round(event.eta), 60)
    hours, minutes = divmod(minutes, 60)
    clock = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{words}, {clock} left"


def _short(file: str) -> str:
    return file.rsplit("/", 1)[-1]
