"""A model of the catalog in another type: from which file to which one, and its new entry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engines.conversion import Order, ordered
from gguf_imagegen.modelfiles.conversion import weight_type
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import holds_vae
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidRequest, UnsupportedOperation

FOLDER: Final = Path("converted")
"""Where the results lie in the models folder."""


@dataclass(frozen=True)
class Conversion:
    """What is to be done for a model that is to be called `name`; `file` is in the models folder."""

    name: str
    file: Path
    source: Entry
    order: Order

    def made(self) -> Entry:
        """The new model, whose file is there."""
        entry = with_file(self.source, self.order.target)
        main = _main(entry)
        files = {**entry.files, main: self.file}
        sources = {role: each for role, each in entry.sources.items() if role in files and role != main}
        own = {
            "id": self.name,
            "quant": "",
            "aliases": (),
            "description": f"{self.source.name} as {self.order.task.weights}",
            "files": files,
            "sources": sources,
            "source": ", ".join(dict.fromkeys(each.url for each in sources.values())),
        }
        return entry.model_copy(update=own)


def conversion(
    catalog: Catalog,
    model: str,
    kind: str,
    *,
    rules: str = "",
    name: str = "",
    put_vae: bool = False,
    force: bool = False,
) -> Conversion:
    """The conversion of a model on disk; refused in words if it cannot be done.

    Its name is the model's own with the type, unless one is given; with `put_vae` its VAE becomes part of
    the file. A name that means another model is never taken, one of an earlier conversion only by `force`.
    """
    entry, wanted = catalog.get(model), weight_type(kind)
    catalog.require_on_disk(entry)
    if entry.packaged:
        raise UnsupportedOperation(
            f"model {entry.id!r} comes with this program and is not converted; choose another", param="model"
        )
    files = catalog.paths(entry)
    if put_vae and "vae" not in files:
        raise InvalidRequest(f"vae: model {entry.id!r} has no VAE in a file of its own", param="vae")
    name = name or f"{entry.id}-{wanted}"
    file = FOLDER / f"{name}.gguf"
    if catalog.knows(name) and (main := catalog.get(name)).files.get(_main(main)) != file:
        raise InvalidRequest(f"name: {name!r} is another model; choose another name", param="name")
    target = catalog.models_dir / file
    if target.exists() and not force:
        raise InvalidRequest(f'name: {name!r} exists already; "force": true replaces it', param="name")
    target.parent.mkdir(parents=True, exist_ok=True)
    vae = files["vae"] if put_vae else None
    return Conversion(
        name, file, entry, ordered(files[_main(entry)], target, wanted, rules, vae, force=force)
    )


def with_file(entry: Entry, file: Path) -> Entry:
    """The same model with another file, whose own VAE stands for one given by itself."""
    files, inside = {**entry.files, _main(entry): file}, holds_vae(read_header(file))
    if inside:
        files.pop("vae", None)
    return entry.model_copy(update={"files": files, "vae_inside": inside})


def _main(entry: Entry) -> Role:
    return "model" if "model" in entry.files else "diffusion"
