"""Which models there are: the YAML catalog, plus a bare model file described by its own header."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import cast

from gguf_imagegen.catalog.address import address_of
from gguf_imagegen.catalog.entry import PACKAGED, Capability, Defaults, Entry, Source
from gguf_imagegen.catalog.kept import kept
from gguf_imagegen.catalog.parse import CatalogError, parse_catalog
from gguf_imagegen.modelfiles.header import SAFETENSORS, Header
from gguf_imagegen.modelfiles.inspect import (
    check_complete,
    component_of,
    family_of,
    holds_vae,
    inspect_file,
    unfit_words,
)
from gguf_imagegen.modelfiles.traits import FAMILIES, EditMode
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import (
    InvalidModelFile,
    MissingComponent,
    ModelNotDownloaded,
    ModelNotFound,
    UnsupportedOperation,
)

MODEL_SUFFIXES = {".gguf", *SAFETENSORS}


class Catalog:
    """The entries by id, alias and quantisation, and where their files lie.

    An entry whose required files are on disk is given without what it could have besides and is not there.
    """

    def __init__(
        self, entries: Iterable[Entry], models_dir: Path, components: Mapping[str, Source] | None = None
    ) -> None:
        self.models_dir = models_dir
        self.components = components or {}
        self.elsewhere: Callable[[Entry], bool] = lambda entry: False
        """Whether another machine has a model that is not here, and makes its pictures."""
        self.awaits: Callable[[], bool] = lambda: False
        """Whether machines may come that have what is nowhere now."""
        self._entries: dict[str, dict[str, Entry]] = {}
        self._names: dict[str, str] = {}
        self._paths: dict[tuple[bool, Path], Path] = {}  # joined once: lists ask for thousands
        for entry in entries:
            self._entries.setdefault(entry.id, {})[entry.quant] = entry
        self._names = {
            name: key for key, quants in self._entries.items() for e in quants.values() for name in e.aliases
        }
        self._names |= {key: key for key in self._entries}

    @property
    def entries(self) -> list[Entry]:
        """One of each model: the quantisation that is on disk, else the first of the catalog."""
        return [self._preferred(quants) for quants in self._entries.values()]

    def get(self, name: str) -> Entry:
        """The entry named ID, ALIAS or ID:QUANT; ModelNotFound lists those that are on disk."""
        name, _, quant = self._plain(name).partition(":")
        quants = self._quants(name)
        if not quant:
            return self._preferred(quants)
        if quant not in quants:
            there = ", ".join(filter(None, quants)) or "none"
            raise ModelNotFound(
                f"model {name!r} has no quantisation {quant[:50]!r}; there are: {there}", param="model"
            )
        return self._as_here(quants[quant])

    def knows(self, name: str) -> bool:
        """Whether this is an id or alias, with or without a quantisation."""
        return self._plain(name).partition(":")[0] in self._names

    def _plain(self, name: str) -> str:
        """An address of a hub as the one alias that stands for all its spellings; else the name itself."""
        if "/" not in name or name.partition(":")[0] in self._names or (found := address_of(name)) is None:
            return name
        return f"{found.name}:{found.quant}" if found.quant else found.name

    def learn(self, entries: Iterable[Entry]) -> None:
        """Know these from now on: models that were found while a server runs."""
        for entry in entries:
            self._entries.setdefault(entry.id, {})[entry.quant] = entry
            self._names |= dict.fromkeys((entry.id, *entry.aliases), entry.id)

    def _quants(self, name: str) -> Mapping[str, Entry]:
        """By quantisation; ModelNotFound for what is neither id nor alias."""
        if name in self._names:
            return self._entries[self._names[name]]
        if name in self.components:
            raise ModelNotFound(
                f"{name!r} is a component of models and none itself; `gguf-imagegen pull {name}` fetches"
                " it and says how it is used",
                param="model",
            )
        near = " or ".join(get_close_matches(name, [*self._names, *self.components], 3))
        hint = f"did you mean {near}? " if near else ""
        here = ", ".join(entry.id for entry in self.entries if self.within_reach(entry)) or "none"
        raise ModelNotFound(
            f"there is no model {name[:100]!r}; {hint}Models on this machine: {here}", param="model"
        )

    def component(self, name: str) -> Source | None:
        """The component of this name, None for what is no component, or a model as well."""
        return None if name in self._names else self.components.get(name)

    def quants(self, name: str) -> list[Entry]:
        """All quantisations of a model, in the catalog's order."""
        name = self._plain(name).partition(":")[0]
        return [self._as_here(entry) for entry in self._quants(name).values()]

    def _preferred(self, quants: Mapping[str, Entry]) -> Entry:
        every = list(quants.values())
        return self._as_here(next((entry for entry in every if self.within_reach(entry)), every[0]))

    def _as_here(self, entry: Entry) -> Entry:
        required = entry.required
        if all(self._path(entry, role).is_file() for role in entry.files.keys() - required.keys()):
            return entry
        return entry.model_copy(update={"files": required}) if self.within_reach(entry) else entry

    def with_entries(self, entries: Iterable[Entry]) -> Catalog:
        """This catalog with further models."""
        return Catalog([*self._every(), *entries], self.models_dir, self.components)

    def with_aliases(self, id: str, names: Iterable[str]) -> Catalog:
        """This catalog with further names of a model; they mean no other model any more."""
        taken, entries = frozenset(names), []
        for entry in self._every():
            kept = tuple(name for name in entry.aliases if name not in taken)
            aliases = (*taken - {id}, *kept) if entry.id == id else kept
            entries.append(entry.model_copy(update={"aliases": aliases}))
        return Catalog(entries, self.models_dir, self.components)

    def with_defaults(self, id: str, defaults: Mapping[str, object]) -> Catalog:
        """This catalog with other defaults of a model where requests are silent."""
        entries = [entry if entry.id != id else entry.with_defaults(defaults) for entry in self._every()]
        return Catalog(entries, self.models_dir, self.components) if defaults else self

    def with_components(self, id: str, files: Mapping[Role, Path | None]) -> Catalog:
        """This catalog with other files, absolute ones, for these roles of a model in every quantisation.

        None leaves the role out.
        """
        entries = []
        for entry in self._every():
            if entry.id == id:
                entry = entry.without(*files)
                given = {role: path for role, path in files.items() if path is not None}
                entry = entry.model_copy(update={"files": {**entry.files, **given}})
            entries.append(entry)
        return Catalog(entries, self.models_dir, self.components)

    def _every(self) -> list[Entry]:
        return [entry for quants in self._entries.values() for entry in quants.values()]

    def with_file(self, entry: Entry) -> tuple[Catalog, Entry]:
        """This catalog with a bare file in it; a file that it knows by name keeps its defaults and limits."""
        main = next(iter(entry.files.values())).name
        every = self._every()
        for known in every:
            if known.family == entry.family and main in {path.name for path in known.files.values()}:
                entry = known.model_copy(
                    update={
                        "files": entry.files,
                        "sources": {},
                        "packaged": False,
                        "vae_inside": entry.vae_inside,
                    }
                )
                every = [other for other in every if other.id != known.id]
                break
        return Catalog([*every, entry], self.models_dir, self.components), entry

    def paths(self, entry: Entry) -> dict[Role, Path]:
        """Path of each file by role; relative names lie in the models folder, or in the package."""
        return {role: self._path(entry, role) for role in entry.files}

    def _path(self, entry: Entry, role: Role) -> Path:
        key = entry.packaged, entry.files[role]
        if key not in self._paths:
            self._paths[key] = (PACKAGED if entry.packaged else self.models_dir) / key[1]
        return self._paths[key]

    def on_disk(self, entry: Entry) -> bool:
        """Whether all that it takes to run this model is here."""
        return bool(entry.files) and all(self._path(entry, role).is_file() for role in entry.required)

    def within_reach(self, entry: Entry) -> bool:
        """Whether all that it takes is here, or where the pictures would be made."""
        return self.on_disk(entry) or (bool(entry.files) and self.elsewhere(entry))

    def size_on_disk(self, entry: Entry) -> int:
        """Bytes of the model's files that are there."""
        return sum(path.stat().st_size for path in self.paths(entry).values() if path.is_file())

    def checked_files(self, entry: Entry) -> dict[Role, Header]:
        """The headers of the model's files, the set found complete: safe to hand to the engine."""
        self.require_on_disk(entry)
        paths = self.paths(entry)
        headers = {role: inspect_file(path) for role, path in paths.items()}
        check_complete(entry.family, headers)
        if entry.vae_inside and not any(role == "vae" or holds_vae(file) for role, file in headers.items()):
            main = next(iter(paths.values())).name
            raise MissingComponent(
                f"{main}: the catalog says that a VAE is inside, and there is none;"
                " give one with --component vae=FILE",
                param="model",
            )
        return headers

    def require_within_reach(self, entry: Entry) -> None:
        """As `require_on_disk`, unless another machine has the model, or may come and have it."""
        if entry.unsupported or not (self.within_reach(entry) or self.awaits()):
            self.require_on_disk(entry)

    def require_on_disk(self, entry: Entry) -> None:
        """Raise ModelNotDownloaded, with how to get it, if a file is missing.

        The words name a quantisation only where the id alone would mean another one.
        """
        if entry.unsupported:
            raise UnsupportedOperation(
                f"model {entry.id!r} cannot be run: {entry.unsupported}", param="model"
            )
        missing = [path.name for role in entry.required if not (path := self._path(entry, role)).is_file()]
        if missing:
            name = entry.id if self.get(entry.id).name == entry.name else entry.name
            raise ModelNotDownloaded(
                f"model {entry.id!r} is not on this machine; not in the models folder: {', '.join(missing)}"
                + (f"; get it with: gguf-imagegen pull {name}" if entry.sources else "")
                + (f"; get it from: {entry.source}" if entry.source and not entry.sources else ""),
                param="model",
            )


def load_catalog(models_dir: Path, extra: Path | None = None) -> Catalog:
    """The built-in catalog and what the models folder keeps of others (`catalog.kept`).

    Entries of the file `extra` add to it or replace those of the same id.
    """
    builtin, components = _builtin()
    taken = {name for entry in builtin for name in (entry.id, *entry.aliases)}
    entries = [*builtin, *(entry for entry in kept(models_dir, components) if entry.id not in taken)]
    if extra is not None:
        try:
            text = extra.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise CatalogError(f"{extra.name}: cannot be read: {type(exc).__name__}") from exc
        added, components = parse_catalog(text, extra.name, components)
        replaced = {entry.id for entry in added}
        entries = [entry for entry in entries if entry.id not in replaced] + added
    return Catalog(entries, models_dir, components)


@cache
def _builtin() -> tuple[tuple[Entry, ...], Mapping[str, Source]]:
    """Parsed once in a process: neither the file nor an entry changes."""
    entries, components = parse_catalog(builtin_text(), "model_catalog.yaml")
    return tuple(entries), components


def builtin_text() -> str:
    """The catalog that is shipped in the wheel; in a source tree it lies beside the package."""
    packaged = resources.files("gguf_imagegen") / "model_catalog.yaml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "model_catalog.yaml").read_text(encoding="utf-8")


CAPABILITIES: Mapping[EditMode, tuple[Capability, ...]] = {
    "img2img": ("text-to-image", "image-to-image", "inpainting"),
    "inpaint": ("inpainting",),
    "reference": ("text-to-image", "reference-edit"),
    "control": ("text-to-image", "image-to-image"),
}
"""What a model can do of which only the header is known, by how its family edits."""


def entry_of_file(path: Path, components: Mapping[Role, Path | None] | None = None) -> Entry:
    """Describe a bare model file by its header.

    Components are those given, and files beside it whose names start with the model's own name
    (`x.gguf` takes `x-vae.gguf`); one given as None is left out.
    """
    if not path.is_file():
        raise InvalidModelFile(f"{path.name}: no such model file (.gguf or .safetensors)", param="model")
    path = path.absolute()  # a hub's cache has names in links, and hashes where they lead to
    header = inspect_file(path)
    if words := unfit_words(header):
        raise InvalidModelFile(f"{path.name}: {words}", param="model")
    family = family_of(header)
    if family is None:
        raise InvalidModelFile(
            f"{path.name}: this is a {component_of(header)} file, not a diffusion model; give the model file"
            " and name this one with --component ROLE=FILE",
            param="model",
        )
    traits = FAMILIES[family]
    files: dict[Role, Path] = {"diffusion" if component_of(header) == "diffusion" else "model": path}
    for sibling in sorted(path.parent.glob(f"{_escape(path.stem)}?*")):
        if sibling.suffix.lower() in MODEL_SUFFIXES and (role := _role(inspect_file(sibling))) is not None:
            files[role] = sibling
    for role, file in (components or {}).items():
        files.pop(role, None)
        if file is not None:
            files[role] = file.resolve()
    for file in files.values():
        if not file.is_file():
            raise MissingComponent(f"{file.name}: no such file", param="component")
    headers = {role: inspect_file(file) for role, file in files.items()}
    check_complete(family, headers)
    return Entry(
        id=re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "model",
        description=f"{path.name} ({family})",
        family=family,
        capabilities=CAPABILITIES[traits.edit_mode],
        files=files,
        vae_inside=any(holds_vae(headers[role]) for role in headers if role in ("model", "diffusion")),
        defaults=Defaults.model_validate(traits.defaults),
    )


def _escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _role(header: Header) -> Role | None:
    component = component_of(header)
    roles = ("clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision", "vae", "taesd", "control_net")
    return cast(Role, component) if component in roles else None
