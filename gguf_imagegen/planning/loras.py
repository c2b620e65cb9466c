"""The LoRAs of a request: files of the LoRA folder that fit the model, as far as both headers tell.

The server of a cluster may have the LoRA and not the model; then the machine that has both compares them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.verdict import weights_of
from gguf_imagegen.modelfiles.engine_names import role_prefix
from gguf_imagegen.modelfiles.inspect import inspect_file
from gguf_imagegen.modelfiles.lora import Fit, fit
from gguf_imagegen.modelfiles.weight_types import as_loaded
from gguf_imagegen.planning.addons import listed_name, named_file
from gguf_imagegen.planning.request import LoraRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Lora


def fitting_loras(
    wanted: Iterable[LoraRequest], entry: Entry, settings: Settings, notes: list[str]
) -> tuple[Lora, ...]:
    """Reads the model's headers, if there is any LoRA; adds to `notes` what of it has no effect.

    Raises MissingAddon for a name that is not there, InvalidModelFile for a file that the engine cannot
    apply to this model.
    """
    loras = [_found(lora, settings.lora_dir) for lora in wanted]
    if settings.cluster and not Catalog([entry], settings.models_dir).on_disk(entry):
        return tuple(replace(lora, checked=False) for lora in loras)
    return fitted(loras, entry, settings, notes)


def fitted(loras: Sequence[Lora], entry: Entry, settings: Settings, notes: list[str]) -> tuple[Lora, ...]:
    """The same LoRAs, compared with the model, whose files are here. Raises InvalidModelFile."""
    if not loras:
        return ()
    catalog = Catalog([entry], settings.models_dir)
    catalog.require_on_disk(entry)
    files = {
        role: inspect_file(path)
        for role, path in catalog.paths(entry).items()
        if role_prefix(role, entry.family) is not None
    }
    files = as_loaded(files, weights_of(entry, files, settings))
    fits = {}
    for path in dict.fromkeys(lora.path for lora in loras):
        fits[path] = fit(inspect_file(path), files, entry.family, entry.id)
        notes.extend(_note(path.name, fits[path], entry.id))
    return tuple(replace(lora, renamed=dict(fits[lora.path].renamed), checked=True) for lora in loras)


def _found(wanted: LoraRequest, folder: Path | None) -> Lora:
    path = named_file(wanted.name, folder, "lora")
    return Lora(path, wanted.scale, listed_name(path, folder))


def _note(name: str, found: Fit, model: str) -> Iterable[str]:
    if found.fitting < found.total:
        yield (
            f"lora: {name}: {found.fitting} of {found.total} tensors fit {model}, the rest has no effect"
            f" (the first of it is {found.stranger[:100]!r})"
        )
