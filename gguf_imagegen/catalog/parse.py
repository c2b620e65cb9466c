"""From the text of a catalog file to entries; every fault is named with file, entry and field."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from gguf_imagegen.catalog.entry import Entry, Source, Strict
from gguf_imagegen.vocabulary.engine import Role


class CatalogError(Exception):
    """A catalog file is wrong; the message names the file, the entry and the field."""


class _File(Strict):
    version: Literal[1]
    components: Mapping[str, Source] = {}
    models: dict[str, dict[str, Any]]


Quant = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Model(BaseModel):
    """What an entry says of its files; the rest of its fields is `Entry`'s."""

    files: Mapping[Role, str | dict[str, Any]] = {}
    quants: Mapping[Quant, dict[str, Any]] = {}
    main: Role = "model"
    repo: str | None = None
    revision: str = "main"
    rename: Literal["text-encoders"] | None = None
    gated: bool = False


def parse_catalog(
    text: str, name: str, known: Mapping[str, Source] | None = None
) -> tuple[list[Entry], dict[str, Source]]:
    """Entries and components of a catalog text; one entry for each quantisation of a model, in their order.

    `known` are components of another file that this one may name.
    """
    try:
        file = _File.model_validate(yaml.load(text, yaml.CSafeLoader))
    except yaml.YAMLError as exc:
        raise CatalogError(f"{name}: not valid YAML: {exc}") from exc
    except ValidationError as exc:
        raise CatalogError(f"{name}: {_first_fault(exc)}") from exc
    components = {**(known or {}), **file.components}
    entries: list[Entry] = []
    for key, value in file.models.items():
        try:
            entries += _entries(key, value, components)
        except ValidationError as exc:
            raise CatalogError(f"{name}: {key}: {_first_fault(exc)}") from exc
        except ValueError as exc:
            raise CatalogError(f"{name}: {key}: {exc}") from exc
    names = [n for e in {entry.id: entry for entry in entries}.values() for n in (e.id, *e.aliases)]
    double = sorted({n for n in names if names.count(n) > 1})
    if double:
        raise CatalogError(f"{name}: {double[0]}: aliases: this name is used twice")
    return entries, components


def _entries(key: str, value: dict[str, Any], components: Mapping[str, Source]) -> list[Entry]:
    model = _Model.model_validate(value)
    rest = {field: given for field, given in value.items() if field not in _Model.model_fields}
    shared = {role: _named(role, given, components) for role, given in model.files.items()}
    if not model.quants:
        if not shared and not rest.get("unsupported"):
            raise ValueError("files: is required, or quants")
        return [_entry({"id": key, **rest}, shared)]
    return [
        _entry({"id": key, "quant": quant, **rest}, {model.main: _main(model, quant, given), **shared})
        for quant, given in model.quants.items()
    ]


def _main(model: _Model, quant: str, given: dict[str, Any]) -> Source | Path:
    """The main file of a quantisation; one that says nothing but its name lies in the models folder."""
    if model.repo is None and "repo" not in given:
        if given.keys() == {"file"}:
            return Path(str(given["file"]))
        raise ValueError(
            f"quants.{quant}: repo is missing; say which repository of the hub the file comes from, or give"
            " nothing but `file`, the name of a file in the models folder"
        )
    common = {"repo": model.repo, "revision": model.revision, "rename": model.rename, "gated": model.gated}
    return Source.model_validate({**common, **given})


def _entry(fields: dict[str, Any], files: Mapping[Role, Source | Path]) -> Entry:
    sources = {role: file for role, file in files.items() if isinstance(file, Source)}
    if sources and "source" not in fields:
        fields["source"] = ", ".join(dict.fromkeys(file.url for file in sources.values()))
    paths = {role: file.path if isinstance(file, Source) else file for role, file in files.items()}
    return Entry.model_validate({**fields, "files": paths, "sources": sources})


def _named(role: Role, given: str | dict[str, Any], components: Mapping[str, Source]) -> Source | Path:
    """A component's name, a source of its own, or the name of a file in the models folder."""
    if isinstance(given, dict):
        return Source.model_validate(given)
    if given in components:
        return components[given]
    if not Path(given).suffix:
        raise ValueError(f"files.{role}: {given!r} is neither a component of the catalog nor a file name")
    return Path(given)


def _first_fault(exc: ValidationError) -> str:
    fault = exc.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc'])) or 'entry'}: {fault['msg']}"
