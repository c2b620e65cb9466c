"""The user's own catalog: models of repositories that the shipped one does not know, kept under a name.

`models.yaml` in the models folder has the form of any catalog file, and may be edited.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.parse import CatalogError, parse_catalog
from gguf_imagegen.machine import locks
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import ModelBusy

FILE = "models.yaml"
_HEAD = "# Models pulled by their address. Written by gguf-imagegen; it may be edited.\n"


def kept(models_dir: Path, known: Mapping[str, Source]) -> list[Entry]:
    """The entries that were kept, none where nothing was."""
    try:
        text = (models_dir / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as exc:
        raise CatalogError(f"{FILE} of the models folder cannot be read: {type(exc).__name__}") from exc
    return parse_catalog(text, f"{FILE} of the models folder", known)[0]


def keep(models_dir: Path, entries: Iterable[Entry]) -> None:
    """Add these to what was kept; they replace those of the same name."""
    models_dir.mkdir(parents=True, exist_ok=True)
    path = models_dir / FILE
    try:
        with locks.exclusive(path.with_name(f".{FILE}.lock")):
            all_of_them = {entry.name: entry for entry in (*kept(models_dir, {}), *entries)}
            temporary = path.with_name(f".{FILE}.new")
            temporary.write_text(_HEAD + _text(all_of_them.values()), encoding="utf-8")
            temporary.replace(path)
    except locks.Held as held:
        raise ModelBusy(f"{FILE} of the models folder is being written by another process") from held


def _text(entries: Iterable[Entry]) -> str:
    models: dict[str, list[Entry]] = {}
    for entry in entries:
        models.setdefault(entry.id, []).append(entry)
    content = {"version": 1, "models": {id: _model(quants) for id, quants in models.items()}}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def _model(quants: list[Entry]) -> dict[str, Any]:
    """What the quantisations share is said by the last of them."""
    last = quants[-1]
    main: Role = "model" if "model" in last.files else "diffusion"
    shared = last.model_dump(
        mode="json", exclude_defaults=True, exclude={"id", "quant", "files", "sources", "source"}
    )
    files = {role: _file(last, role) for role in last.files if role != main}
    if not last.quant:
        return {**shared, "files": {main: _file(last, main), **files}}
    named = {entry.quant: _file(entry, main) for entry in quants if main in entry.files}
    return {**shared, "main": main, "quants": named, "files": files}


def _file(entry: Entry, role: Role) -> str | dict[str, Any]:
    source = entry.sources.get(role)
    if source is None:
        return entry.files[role].as_posix()
    return source.model_dump(mode="json", exclude_defaults=True)
