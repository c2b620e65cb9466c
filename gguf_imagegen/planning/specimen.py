"""A picture by which a model is measured, or compared with another: always the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.quants import Survey
from gguf_imagegen.catalog.verdict import refusal, verdict_of
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.memory import available
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.planning.bounds import Bounds
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec, Role

PROMPT: Final = "a lighthouse at dusk"
SEED: Final = 1


@dataclass(frozen=True)
class Specimen:
    """A model as it is loaded, what to draw with it, and the headers of its files."""

    model: LoadSpec
    picture: Generate
    headers: Mapping[Role, Header]


def specimen(
    catalog: Catalog, entry: Entry, settings: Settings, steps: int, size: str | None = None
) -> Specimen:
    """A picture with the model's guidance, of its own size unless one is given.

    Reads headers. Raises InsufficientMemory as `serve` would say it.
    """
    headers = catalog.checked_files(entry)
    if settings.memory_check:
        found = verdict_of(entry, headers, settings, available())
        if not found.fits:
            raise refusal(entry, found, Survey(catalog, settings).next_best(entry))
    steps = min(steps, Bounds.of(entry, settings).steps)
    fields = {"prompt": PROMPT, "seed": SEED, "steps": steps, "step_cache": "none", "size": size}
    request, warnings = parse_request(fields)
    settings = entry.engine.over(settings)
    spec = plan(request, entry, settings, "generation", warnings).spec
    threads = settings.threads or usable_cores()
    return Specimen(model_spec(entry, catalog.paths(entry), headers, settings, threads), spec, headers)
