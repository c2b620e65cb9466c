"""What a request can want of a model that makes it another loaded one: without T5, for seamless edges, or for
what else it may have been trained to predict."""

from __future__ import annotations

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.modelfiles.inspect import parts_needed
from gguf_imagegen.planning.request import ImageRequest


def chosen_parts(request: ImageRequest, entry: Entry) -> tuple[Entry, list[str]]:
    """The model as the request wants it, and a note on what it cannot be. A change loads it again."""
    if request.seamless is not None:
        entry = entry.model_copy(update={"seamless": request.seamless})
    if request.prediction is not None:
        engine = entry.engine.model_copy(update={"prediction": request.prediction})
        entry = entry.model_copy(update={"engine": engine})
    if request.t5xxl != "none":
        return entry, []
    if any("t5xxl" in roles for _, roles in parts_needed(entry.family)):
        return entry, [f"t5xxl: {entry.id} cannot do without T5; it was kept"]
    return entry.without("t5xxl"), []
