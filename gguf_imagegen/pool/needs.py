"""Which files a job needs where it runs: those of its model, and the add-ons that its request names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.engine import Generate

Files: TypeAlias = tuple[Entry | None, tuple[Path, ...]]
"""A model, None for work without one, and add-ons."""


def files_of(plan: Plan) -> Files:
    """All of them."""
    return plan.entry if plan.generate else None, addons_of(plan)


def addons_of(plan: Plan) -> tuple[Path, ...]:
    """LoRAs, textual inversions and upscalers; a ControlNet is one of the model's files."""
    found = [plan.enlarger, plan.upscale.path if plan.upscale else None]
    return tuple(dict.fromkeys([*_drawn_with(plan.generate), *filter(None, found)]))


def _drawn_with(spec: Generate | None) -> Iterator[Path]:
    if spec is not None:
        yield from (lora.path for lora in spec.loras)
        yield from (embedding.path for embedding in spec.embeddings)
        if spec.hires is not None and spec.hires.model is not None:
            yield spec.hires.model
