"""Whether the engine and a model can do what a request asks of them."""

from __future__ import annotations

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Capability, Entry
from gguf_imagegen.pictures import decode
from gguf_imagegen.planning.bounds import Bounds
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities, TaskKind
from gguf_imagegen.vocabulary.errors import UnsupportedOperation


def require_able(request: ImageRequest, entry: Entry, catalog: Catalog, settings: Settings) -> None:
    """UnsupportedOperation, naming the models on this machine that can, if this one cannot.

    Reads the header of a picture: call it in a thread.
    """
    needed: tuple[Capability, ...]
    count = len(request.image)
    if not count:
        what, param, needed = "text to image", "model", ("text-to-image",)
    elif count > 1:
        what, param, needed = f"edits of {count} images", "image", ("reference-edit",)
    elif request.mask is not None or decode.may_be_transparent(request.image[0]):
        what, param, needed = "edits with a mask", "mask", ("inpainting", "reference-edit")
    else:
        what, param, needed = "image to image", "image", ("image-to-image", "reference-edit")

    def can(each: Entry) -> bool:
        return bool(set(needed) & set(each.capabilities)) and count <= Bounds.of(each, settings).images

    if not can(entry):
        names = _advice(catalog, [each for each in catalog.entries if can(each)])
        raise UnsupportedOperation(f"{param}: {entry.id} cannot do {what}; {names}", param=param)


def require_engine(request: ImageRequest, entry: Entry, task: TaskKind, able: Abilities) -> None:
    """UnsupportedOperation if the engine cannot do this at all, or not with such a model."""
    tasks = {task, "upscale"} if request.upscale is not None else {task}
    if lacking := sorted(tasks - set(able.tasks)):
        raise UnsupportedOperation(
            f"{lacking[0]}: the engine of this server cannot do that", param=lacking[0]
        )
    if request.variation_strength and not able.variations:
        raise UnsupportedOperation(
            "variation_strength: the engine of this server cannot mix the noise of two seeds; scripts/install"
            " builds one that can, and this project's wheels of the engine can, too",
            param="variation_strength",
        )
    if task == "generate" and entry.family not in able.families:
        raise UnsupportedOperation(
            f"model: the engine of this server cannot run {entry.family}, only {', '.join(able.families)}",
            param="model",
        )


def _advice(catalog: Catalog, able: list[Entry]) -> str:
    if here := sorted({each.id for each in able if catalog.on_disk(each)}):
        return f"{', '.join(here)} can"
    if there := sorted({each.id for each in able if each.sources and not each.unsupported}):
        return f"pull one that can: {', '.join(there[:8])}"
    return "no model of the catalog can"
