"""The files of a node: what lies in its folders, and where a model or an add-on named from afar is there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import MODEL_SUFFIXES, Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.store import STATE, Store, sha256_of
from gguf_imagegen.pictures.finish import Finish, Upscaler
from gguf_imagegen.pool.ray.messages import FileState, Stock
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile, MissingAddon, ModelNotDownloaded

FOLDERS: Final[Mapping[str, str]] = {
    "lora": "lora_dir",
    "embedding": "embedding_dir",
    "upscaler": "upscaler_dir",
    "control": "control_dir",
}
"""By the word that names of add-ons begin with: the setting with their folder."""
FRESH: Final = 5.0
"""Seconds for which what is known of a file is not looked at again."""


def stock(settings: Settings, *, leaving: bool = False) -> Stock:
    """What lies in this node's folders now. Looks at every file: call it in a thread."""
    store, models = Store(settings.models_dir), {}
    for relative in _files(settings.models_dir):
        record = store.record(relative)
        size = record.size if record else _size(settings.models_dir / relative)
        models[relative.as_posix()] = FileState(size, record.sha256 if record else None)
    addons = {
        f"{word}/{relative.as_posix()}": _size(folder / relative)
        for word, folder in _folders(settings)
        for relative in _files(folder)
    }
    return Stock(models, addons, leaving)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        relative = path.relative_to(folder)
        if STATE not in relative.parts and path.suffix.lower() in {*MODEL_SUFFIXES, ".pt"} and path.is_file():
            yield relative


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # gone meanwhile
        return -1


def _folders(settings: Settings) -> Iterator[tuple[str, Path]]:
    for word, field in FOLDERS.items():
        folder = getattr(settings, field)
        if folder is not None:
            yield word, folder


def flag_of(name: str) -> str:
    """Of the folder of an add-on, by its name; the models folder's for all else."""
    field = FOLDERS.get(name.partition("/")[0], "models_dir")
    return f"--{field.replace('_', '-')}"


def addon_name(path: Path, settings: Settings) -> str:
    """What an add-on of this machine is called elsewhere; one outside all folders by its bare name."""
    for word, folder in _folders(settings):
        if path.is_relative_to(folder):
            return f"{word}/{path.relative_to(folder).as_posix()}"
    return path.name


class Known:
    """What this machine knows of files; every waiting job asks, so it looks now and then only."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._found: dict[str, tuple[float, Entry, Mapping[str, FileState]]] = {}
        self._sizes: dict[Path, tuple[float, int]] = {}

    def of(self, entry: Entry) -> Mapping[str, FileState]:
        """By role."""
        now = time.monotonic()
        at, known, states = self._found.get(entry.name, (-FRESH, None, {}))
        if known != entry or now - at >= FRESH:
            states = known_files(entry, self._catalog)
            self._found[entry.name] = now, entry, states
        return states

    def size(self, addon: Path) -> int:
        """Of an add-on; -1 if it has gone."""
        now = time.monotonic()
        at, size = self._sizes.get(addon, (-math.inf, -1))
        if now - at >= FRESH:
            size = _size(addon)
            self._sizes[addon] = now, size
        return size


def known_files(entry: Entry, catalog: Catalog) -> dict[str, FileState]:
    """What this machine knows of a model's files, by role: sizes and hashes of the catalog, else its own."""
    known: dict[str, FileState] = {}
    store = Store(catalog.models_dir)
    for role, path in catalog.paths(entry).items():
        source = entry.sources.get(role)
        record = (
            None if entry.packaged or entry.files[role].is_absolute() else store.record(entry.files[role])
        )
        size = path.stat().st_size if path.is_file() else (source.bytes or 0) if source else 0
        sha256 = record.sha256 if record else source.sha256 if source else None
        if size or sha256:
            known[role] = FileState(size if not (source and source.rename) else 0, sha256)
    return known


def name_of(file: Path, settings: Settings) -> str:
    """What a model's file is called elsewhere: inside the models folder, or as an add-on."""
    return addon_name(file, settings) if file.is_absolute() else file.as_posix()


def has(found: Stock, entry: Entry, known: Mapping[str, FileState], settings: Settings) -> bool:
    """Whether a node with this stock can load a model of whose files so much is known."""
    if not entry.files:
        return False
    return entry.packaged or all(
        _matches(_stocked(found, name_of(file, settings)), known.get(role))
        for role, file in entry.required.items()
    )


def _stocked(found: Stock, name: str) -> FileState | None:
    if name in found.addons:
        return FileState(found.addons[name])
    if "/" in name or name in found.models:
        return found.models.get(name)
    return next((state for path, state in found.models.items() if path.rpartition("/")[2] == name), None)


def _matches(here: FileState | None, known: FileState | None) -> bool:
    if here is None or known is None:
        return here is not None
    same_size = not known.size or known.size == here.size
    return same_size and (None in (known.sha256, here.sha256) or known.sha256 == here.sha256)


class Resolver:
    """Finds on this node what a server of another machine names. Blocks: call it in a thread."""

    def __init__(self, settings: Settings, node: str) -> None:
        self.settings = settings
        self.node = node
        self._hashes: dict[tuple[Path, int, int], str] = {}  # each takes seconds, or minutes

    def entry(self, entry: Entry, known: Mapping[str, FileState], there: Mapping[str, str]) -> Entry:
        """The model with files of this node; `there` are their names, by role.

        What it could do without is left out if it is not here. Raises ModelNotDownloaded or InvalidModelFile.
        """
        if entry.packaged:
            return entry
        files: dict[Role, Path] = {}
        for role in entry.files:
            path = self._path(there[role])
            if path is None and role in entry.required:
                raise ModelNotDownloaded(
                    f"model {entry.id!r}: {self.node} has no {Path(there[role]).name} in its models folder",
                    param="model",
                )
            if path is not None:
                self._check(path, known.get(role), renamed=self._renamed(entry, role))
                files[role] = path
        return entry.model_copy(update={"files": files})

    def _renamed(self, entry: Entry, role: Role) -> bool:
        source = entry.sources.get(role)
        return source is not None and source.rename is not None

    def _path(self, name: str) -> Path | None:
        word, _, rest = name.partition("/")
        folder = dict(_folders(self.settings)).get(word)
        models = self.settings.models_dir
        places = [models / name, *([folder / rest] if folder is not None and rest else [])]
        if "/" not in name:
            places += [models / relative for relative in _files(models) if relative.name == name]
        inside = (path for path in places if ".." not in path.parts)
        return next((path.absolute() for path in inside if path.is_file()), None)

    def _check(self, path: Path, known: FileState | None, *, renamed: bool) -> None:
        """The file that is meant, and not another one of its name."""
        if known is None:
            return
        size = path.stat().st_size
        wrong = bool(known.size) and known.size != size
        if not wrong and known.sha256 is not None and not renamed:
            wrong = self._hash(path, size) != known.sha256
        if wrong:
            raise InvalidModelFile(
                f"{path.name} on {self.node} is another file than the server's; pull or copy it again",
                param="model",
            )

    def _hash(self, path: Path, size: int) -> str:
        models = self.settings.models_dir
        if path.is_relative_to(models):
            record = Store(models).record(path.relative_to(models))
            if record is not None:
                return record.sha256
        key = path, size, path.stat().st_mtime_ns
        if key not in self._hashes:
            self._hashes[key] = sha256_of(path, lambda done, total: None)
        return self._hashes[key]

    def task(self, spec: Generate) -> Generate:
        """The work with its add-ons where they lie here. Raises MissingAddon."""
        return _moved(spec, self._addon)

    def finish(self, finish: Finish) -> Finish:
        """The same of its upscalers."""
        return _finish_moved(finish, self._addon)

    def _addon(self, named: Path) -> Path:
        path = self._path(named.as_posix())
        if path is None:
            raise MissingAddon(f"{named.name} is not in the {flag_of(named.as_posix())} of {self.node}")
        return path


def abroad(spec: Generate, settings: Settings) -> Generate:
    """The work with its add-ons named as `Resolver` finds them."""
    return _moved(spec, lambda path: Path(addon_name(path, settings)))


def finish_abroad(finish: Finish, settings: Settings) -> Finish:
    """The same of its upscalers."""
    return _finish_moved(finish, lambda path: Path(addon_name(path, settings)))


def _finish_moved(finish: Finish, move: Callable[[Path], Path]) -> Finish:
    def moved(upscaler: Upscaler | None) -> Upscaler | None:
        return upscaler and replace(upscaler, path=move(upscaler.path))

    return replace(finish, enlarger=moved(finish.enlarger), upscaler=moved(finish.upscaler))


def _moved(spec: Generate, move: Callable[[Path], Path]) -> Generate:
    hires = spec.hires
    return replace(
        spec,
        loras=tuple(replace(lora, path=move(lora.path)) for lora in spec.loras),
        embeddings=tuple(replace(each, path=move(each.path)) for each in spec.embeddings),
        hires=replace(hires, model=move(hires.model)) if hires and hires.model else hires,
    )
