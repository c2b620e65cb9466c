"""Whether a model has room on this machine, what to say if not, and when to decode in tiles."""

from __future__ import annotations

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.fit import Available, Estimate, Files, Verdict, estimate, verdict
from gguf_imagegen.errors import InsufficientMemory
from gguf_imagegen.settings import Settings


def verdict_of(entry: Entry, files: Files, settings: Settings, free: Available) -> Verdict:
    """Where there is a GPU, the better verdict of both memories.

    Which of them the engine uses is known only when it has loaded a model: nothing that may work is refused.
    """
    verdicts = [
        verdict(_estimate(entry, files, settings, gpu), free) for gpu in (True, False) if free.vram or not gpu
    ]
    return next((each for each in verdicts if each.fits), verdicts[0])


def refusal(entry: Entry, found: Verdict, better: str | None = None) -> InsufficientMemory:
    """With numbers, and with what could be done; `better` is the name of a model that fits."""
    advice = [f"take {better}, which fits"] if better else []
    advice += ["unload other models or programs", "or turn this check off with --no-memory-check"]
    return InsufficientMemory(f"model {entry.name!r} {found.words}: {', '.join(advice)}", param="model")


def needs_tiling(entry: Entry, files: Files, width: int, height: int, free: Available, backend: str) -> bool:
    """Whether a loaded model can decode a picture of this size in tiles only."""
    wanted = estimate(files, entry.family, width, height, gpu=backend != "CPU")
    usable = free.usable
    room = usable.ram if backend == "CPU" or usable.vram is None else usable.vram
    return wanted.decode_tiled < wanted.decode and wanted.decode > room


def _estimate(entry: Entry, files: Files, settings: Settings, gpu: bool) -> Estimate:
    width, height = entry.defaults.size
    return estimate(
        files, entry.family, width, height,
        gpu=gpu,
        offload_to_cpu=settings.offload_to_cpu,
        vae_on_cpu=settings.vae_on_cpu,
        text_encoders_on_cpu=settings.text_encoders_on_cpu,
        flash_attention=settings.flash_attention,
    )  # fmt: skip
