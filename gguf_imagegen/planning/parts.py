"""Parts of a model that a request can leave out: of diffusers' three text encoders of SD3 the third, T5."""

from __future__ import annotations

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.modelfiles.inspect import parts_needed
from gguf_imagegen.planning.request import ImageRequest


def chosen_parts(request: ImageRequest, entry: Entry) -> tuple[Entry, list[str]]:
    """The model with the parts that the request wants, and a note on what could not be left out.

    Without T5 is another loaded model, so a change loads it again.
    """
    if request.t5xxl != "none":
        return entry, []
    if any("t5xxl" in roles for _, roles in parts_needed(entry.family)):
        return entry, [f"t5xxl: {entry.id} cannot do without T5; it was kept"]
    return entry.without("t5xxl"), []
