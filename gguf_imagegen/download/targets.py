"""Which files a pull or a removal means by a name."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.quants import choose_quant
from gguf_imagegen.download.hub import Hub
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import PullFailed


def to_pull(catalog: Catalog, name: str, settings: Settings) -> Entry:
    """The model that is to be pulled; an error for one whose files cannot be."""
    entry = choose_quant(catalog, name, settings, sizes_on_hub)
    if entry.unsupported or not entry.sources:
        catalog.require_on_disk(entry)
    return entry


def sizes_on_hub(sources: Iterable[Source]) -> dict[Path, int]:
    """Bytes of each file by its path, without those that the hub does not tell."""
    hub, sizes = Hub(), dict[Path, int]()

    def look(source: Source) -> None:
        with suppress(PullFailed):
            sizes[source.path] = hub.look(source).size

    with ThreadPoolExecutor(8, thread_name_prefix="sizes") as pool:
        list(pool.map(look, sources))
    return sizes


def to_remove(catalog: Catalog, name: str) -> tuple[list[Entry], list[Entry]]:
    """The entries that ID (in every quantisation) or ID:QUANT means, and the others that are on disk."""
    entries = [catalog.get(name)] if ":" in name else catalog.quants(name)
    every = [entry for model in catalog.entries for entry in catalog.quants(model.id)]
    return entries, [entry for entry in every if entry not in entries and catalog.on_disk(entry)]
