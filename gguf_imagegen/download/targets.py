"""Which files a pull or a removal means by a name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.catalog.address import Address, address_of, is_url
from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.default_model import given_parts
from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.quants import choose_quant
from gguf_imagegen.download.hubs import Hubs
from gguf_imagegen.download.repository import Finder, matching
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidRequest, ModelNotFound, PullFailed


@dataclass(frozen=True)
class Target:
    """A model to pull; `new` are the entries, its quantisations, that the catalog does not have yet."""

    entry: Entry
    new: tuple[Entry, ...] = ()


def to_pull(catalog: Catalog, name: str, settings: Settings, components: tuple[str, ...] = ()) -> Target:
    """The model that is to be pulled; an error for one whose files cannot be.

    What the catalog does not know may be the address of a repository, or of a file in one, which takes the
    parts that `components` name before any other.
    """
    address, given = address_of(name), given_parts(components)
    parts = {role: part for role, part in given.items() if part is not None}
    if address is not None and (parts or not _knows(catalog, address)):
        return _found(catalog, address, settings, parts)
    if parts:
        raise InvalidRequest(
            f"component: {name!r} is of the catalog, which says what it takes; give other parts where it is"
            " served: serve --component ROLE=FILE",
            param="component",
        )
    if address is None and is_url(name):
        raise InvalidRequest(
            f"{name[:100]!r} is no model file or repository of a hub; models come from huggingface.co,"
            " modelscope.cn, or the hub of HF_ENDPOINT",
            param="model",
        )
    entry = choose_quant(catalog, name, settings, sizes_on_hub)
    if entry.unsupported or not entry.sources:
        catalog.require_on_disk(entry)
    return Target(entry)


def _knows(catalog: Catalog, address: Address) -> bool:
    if not catalog.knows(address.name):
        return False
    return not address.quant or any(each.quant == address.quant for each in catalog.quants(address.name))


def _found(
    catalog: Catalog, address: Address, settings: Settings, parts: Mapping[Role, Path | Address]
) -> Target:
    """The quantisation that is asked for, else the largest that fits into memory."""
    entries = Finder(catalog, parts).models(address)
    meant = list(matching(entries, address))
    if not meant:
        there = ", ".join(entry.quant for entry in entries)
        raise ModelNotFound(
            f"{address.name} has no quantisation {address.quant!r}; there are: {there}", param="model"
        )
    whole = catalog.with_entries(entries)
    name = meant[0].name if len(meant) == 1 else meant[0].id
    return Target(choose_quant(whole, name, settings, sizes_on_hub), tuple(entries))


def sizes_on_hub(sources: Iterable[Source]) -> dict[Path, int]:
    """Bytes of each file by its path, without those that the hub does not tell."""
    hub, sizes = Hubs(), dict[Path, int]()

    def look(source: Source) -> None:
        with suppress(PullFailed):
            sizes[source.path] = sum(hub.look(piece).size for piece in source.pieces)

    with ThreadPoolExecutor(8, thread_name_prefix="sizes") as pool:
        list(pool.map(look, sources))
    return sizes


def to_remove(catalog: Catalog, name: str) -> tuple[list[Entry], list[Entry]]:
    """The entries that ID (in every quantisation) or ID:QUANT means, and the others that are on disk."""
    entries = [catalog.get(name)] if ":" in name else catalog.quants(name)
    every = [entry for model in catalog.entries for entry in catalog.quants(model.id)]
    return entries, [entry for entry in every if entry not in entries and catalog.on_disk(entry)]
