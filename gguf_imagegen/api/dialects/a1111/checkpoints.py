"""AUTOMATIC1111's checkpoints: the models of the catalog by title, file name or hash."""

from __future__ import annotations

import re
from collections.abc import Iterator

from aiohttp import web

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.vocabulary.engine import Role


def main_role(entry: Entry) -> Role:
    """Which of its files gives a model its name."""
    return next((role for role in entry.files if role in ("model", "diffusion")), next(iter(entry.files)))


def sha256_of(entry: Entry) -> str | None:
    """The hash of the main file, if the catalog states one."""
    source = entry.sources.get(main_role(entry)) if entry.files else None
    return source.sha256 if source is not None and source.rename is None else None


def title_of(entry: Entry) -> str:
    """ "NAME [SHORT HASH]", as AUTOMATIC1111 writes it; the name alone where no hash is known."""
    sha256 = sha256_of(entry)
    return f"{entry.name} [{sha256[:10]}]" if sha256 else entry.name


def on_disk(catalog: Catalog) -> Iterator[Entry]:
    """Every quantisation that could be loaded now."""
    for entry in catalog.entries:
        for each in catalog.quants(entry.id):
            if catalog.within_reach(each) and not each.unsupported:
                yield each


def find_model(catalog: Catalog, name: str) -> Entry:
    """By title, id, alias, file name with or without suffix, or hash; ModelNotFound lists the known ones."""
    wanted = name.strip().casefold()
    for entry in on_disk(catalog):
        file, sha256 = entry.files[main_role(entry)], sha256_of(entry) or ""
        names = (title_of(entry), entry.name, file.name, file.stem, sha256, sha256[:10])
        if wanted and wanted in (each.casefold() for each in names):
            return entry
    return catalog.get(re.sub(r"\s*\[[0-9a-fA-F]{8,64}\]$", "", name.strip()))


def use_by_default(app: web.Application, entry: Entry) -> None:
    """Make it the model of requests that name none, and have it loaded as soon as no job waits."""
    catalog = app[SERVICE].catalog
    catalog.require_within_reach(entry)
    app[SERVICE].default_model = entry.id if catalog.get(entry.id) == entry else entry.name
    app[SERVICE].scheduler.want(entry)
