"""Which previews a request wants, and after which steps OpenAI's partial images are due."""

from __future__ import annotations

import math

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.vocabulary.engine import Generate, PreviewMode


def preview_mode(request: ImageRequest, entry: Entry) -> PreviewMode:
    wanted = request.stream_options.preview if request.stream_options else False
    if isinstance(wanted, str):
        return wanted
    if not (wanted or request.partial_images):
        return "none"
    if "taesd" in entry.files:
        return "tae"
    return "proj" if entry.traits.latent_preview else "vae"


def spread_steps(spec: Generate, count: int) -> tuple[int, ...]:
    """`count` steps spread evenly over the sampling, never the last one."""
    total = spec.sampling_steps
    marks = {math.ceil(total * (i + 1) / (count + 1)) for i in range(count)}
    return tuple(sorted(mark for mark in marks if 0 < mark < total))
