"""Which models there are: the YAML catalog, plus a bare model file described by its own header."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gguf_imagegen.catalog.header import Header
from gguf_imagegen.catalog.inspect import check_complete, component_of, family_of, inspect_file
from gguf_imagegen.catalog.traits import Traits, traits_of
from gguf_imagegen.engine.protocol import Role
from gguf_imagegen.errors import InvalidModelFile, MissingComponent, ModelNotDownloaded, ModelNotFound

Capability = Literal["text-to-image", "image-to-image", "inpainting", "reference-edit"]
MODEL_SUFFIXES = {".gguf", ".safetensors"}


def _size(value: object) -> object:
    match = re.fullmatch(r"(\d+)[x*](\d+)", value) if isinstance(value, str) else None
    return (int(match[1]), int(match[2])) if match else value


Size = Annotated[tuple[int, int], BeforeValidator(_size)]


class CatalogError(Exception):
    """A catalog file is wrong; the message names the file, the entry and the field."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Defaults(_Strict):
    """Used where a request is silent; `size` is (width, height) in pixels."""

    size: Size = (512, 512)
    steps: int = Field(20, ge=1)
    sampler: str = "euler"
    schedule: str = "default"
    cfg_scale: float = Field(7.0, ge=0)
    guidance: float = Field(3.5, ge=0)
    strength: float = Field(0.75, ge=0, le=1)
    clip_skip: int = -1
    flow_shift: float | None = None


class Limits(_Strict):
    """Bounds of the model; the server's own bounds hold besides."""

    max_side: int = Field(2048, ge=64)
    max_pixels: int = Field(4_194_304, ge=4096)
    max_steps: int = Field(150, ge=1)


class Entry(_Strict):
    """One model. `files` are names inside the models folder, or absolute paths for a bare file."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    aliases: tuple[str, ...] = ()
    description: str = ""
    family: str
    files: Mapping[Role, Path]
    source: str = ""
    licence: str = "unknown"
    defaults: Defaults = Defaults()
    limits: Limits = Limits()
    capabilities: tuple[Capability, ...] = ("text-to-image", "image-to-image", "inpainting")
    quality: Mapping[Literal["low", "medium", "high", "xhigh", "max"], int] = {}

    @model_validator(mode="after")
    def _family_is_known(self) -> Entry:
        if traits_of(self.family) is None:
            raise ValueError(f"family: {self.family!r} is not one this server can run")
        return self

    @property
    def traits(self) -> Traits:
        return cast(Traits, traits_of(self.family))


class _File(_Strict):
    version: Literal[1]
    models: dict[str, dict[str, Any]]


class Catalog:
    """The entries by id and alias, and where their files lie."""

    def __init__(self, entries: Iterable[Entry], models_dir: Path) -> None:
        self.models_dir = models_dir
        self._entries = {entry.id: entry for entry in entries}
        self._names = {alias: e.id for e in self._entries.values() for alias in e.aliases} | {
            name: name for name in self._entries
        }

    @property
    def entries(self) -> list[Entry]:
        return list(self._entries.values())

    def get(self, name: str) -> Entry:
        """The entry with this id or alias; ModelNotFound lists the known ones."""
        if name not in self._names:
            known = ", ".join(sorted(self._entries)) or "none"
            raise ModelNotFound(f"there is no model {name[:100]!r}; known models: {known}", param="model")
        return self._entries[self._names[name]]

    def with_file(self, entry: Entry) -> tuple[Catalog, Entry]:
        """This catalog with a bare file in it; a file that it knows by name keeps its defaults and limits."""
        main = next(iter(entry.files.values())).name
        for known in self._entries.values():
            if known.family == entry.family and main in {path.name for path in known.files.values()}:
                entry = known.model_copy(update={"files": entry.files})
        return Catalog([*self._entries.values(), entry], self.models_dir), entry

    def paths(self, entry: Entry) -> dict[Role, Path]:
        """Path of each file by role; relative names lie in the models folder."""
        return {role: self.models_dir / path for role, path in entry.files.items()}

    def on_disk(self, entry: Entry) -> bool:
        return all(path.is_file() for path in self.paths(entry).values())

    def checked_files(self, entry: Entry) -> dict[Role, Header]:
        """The headers of the model's files, the set found complete: safe to hand to the engine."""
        self.require_on_disk(entry)
        paths = self.paths(entry)
        headers = {role: inspect_file(path) for role, path in paths.items()}
        check_complete(entry.family, headers)
        return headers

    def require_on_disk(self, entry: Entry) -> None:
        """Raise ModelNotDownloaded, with where to get it, if a file is missing."""
        paths = self.paths(entry)
        missing = [path.name for path in paths.values() if not path.is_file()]
        if missing:
            raise ModelNotDownloaded(
                f"model {entry.id!r} is not on this machine; not in the models folder: {', '.join(missing)}"
                + (f"; get it from: {entry.source}" if entry.source else ""),
                param="model",
            )


def load_catalog(models_dir: Path, extra: Path | None = None) -> Catalog:
    """The built-in catalog; entries of the file `extra` add to it or replace those of the same id."""
    entries = {e.id: e for e in parse_catalog(builtin_text(), "model_catalog.yaml")}
    if extra is not None:
        try:
            text = extra.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise CatalogError(f"{extra.name}: cannot be read: {type(exc).__name__}") from exc
        entries |= {e.id: e for e in parse_catalog(text, extra.name)}
    return Catalog(entries.values(), models_dir)


def builtin_text() -> str:
    """The catalog that is shipped in the wheel; in a source tree it lies beside the package."""
    packaged = resources.files("gguf_imagegen") / "model_catalog.yaml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "model_catalog.yaml").read_text(encoding="utf-8")


def parse_catalog(text: str, name: str) -> list[Entry]:
    """Entries of a catalog text; CatalogError says "file: entry: field: what is wrong"."""
    try:
        file = _File.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as exc:
        raise CatalogError(f"{name}: not valid YAML: {exc}") from exc
    except ValidationError as exc:
        raise CatalogError(f"{name}: {_first_fault(exc)}") from exc
    entries = []
    for key, value in file.models.items():
        try:
            entries.append(Entry.model_validate({"id": key, **value}))
        except ValidationError as exc:
            raise CatalogError(f"{name}: {key}: {_first_fault(exc)}") from exc
    names = [n for e in entries for n in (e.id, *e.aliases)]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise CatalogError(f"{name}: {double[0]}: aliases: this name is used twice")
    return entries


def _first_fault(exc: ValidationError) -> str:
    fault = exc.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'entry'}: {fault['msg']}"


def entry_of_file(path: Path, components: Mapping[Role, Path] | None = None) -> Entry:
    """Describe a bare model file by its header.

    Components are those given, and files beside it whose names start with the model's own name
    (`x.gguf` takes `x-vae.gguf`).
    """
    if path.suffix not in MODEL_SUFFIXES or not path.is_file():
        raise InvalidModelFile(f"{path.name}: no such model file (.gguf or .safetensors)", param="model")
    path = path.resolve()
    header = inspect_file(path)
    family = family_of(header)
    if family is None:
        raise InvalidModelFile(
            f"{path.name}: this is a {component_of(header)} file, not a diffusion model; give the model file"
            " and name this one with --component ROLE=FILE",
            param="model",
        )
    traits = traits_of(family)
    if traits is None:
        raise InvalidModelFile(f"{path.name}: family {family} cannot make images here", param="model")
    files: dict[Role, Path] = {"diffusion" if component_of(header) == "diffusion" else "model": path}
    for sibling in sorted(path.parent.glob(f"{_escape(path.stem)}?*")):
        if sibling.suffix in MODEL_SUFFIXES and (role := _role(inspect_file(sibling))) is not None:
            files[role] = sibling
    files |= {role: file.resolve() for role, file in (components or {}).items()}
    for file in files.values():
        if not file.is_file():
            raise MissingComponent(f"{file.name}: no such file", param="component")
    check_complete(family, {role: inspect_file(file) for role, file in files.items()})
    return Entry(
        id=re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "model",
        description=f"{path.name} ({family})",
        family=family,
        files=files,
        defaults=Defaults.model_validate(traits.defaults),
    )


def _escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _role(header: Header) -> Role | None:
    component = component_of(header)
    roles = ("clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision", "vae", "taesd", "control_net")
    return cast(Role, component) if component in roles else None
