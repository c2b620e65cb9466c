"""Whether a model has room on this machine, what to say if not, and when to decode in tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.load_options import open_options
from gguf_imagegen.catalog.memory import Estimate, Files, Memory, estimate
from gguf_imagegen.machine.kernels import kernels_here
from gguf_imagegen.machine.memory import Available, usable
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.modelfiles.weight_types import as_loaded, loaded_as
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import LoadSpec, Role, WeightType
from gguf_imagegen.vocabulary.errors import InsufficientMemory


@dataclass(frozen=True)
class Verdict:
    """`tiling`: it takes tiled decoding to fit. `words` complete "the model ...".

    `needs` and `free` are bytes of the memory that is short, else of the one that the sampler works in.
    """

    fits: bool
    tiling: bool
    needs: int
    free: int
    words: str


def verdict_of(
    entry: Entry, files: Files, settings: Settings, free: Available, size: tuple[int, int] | None = None
) -> Verdict:
    """For the model's own size, or this one; where there is a GPU, the better verdict of both memories.

    Which of them the engine uses is known only when it has loaded a model: nothing that may work is refused.
    """
    kinds = [gpu for gpu in (True, False) if free.vram or not gpu]
    verdicts = [_judged(entry, files, settings, gpu, size or entry.defaults.size, free) for gpu in kinds]
    return next((each for each in verdicts if each.fits), verdicts[0])


def refusal(entry: Entry, found: Verdict, better: str | None = None) -> InsufficientMemory:
    """With numbers, and with what could be done; `better` is the name of a model that fits."""
    advice = [f"take {better}, which fits"] if better else []
    advice += ["unload other models or programs", "or turn this check off with --no-memory-check"]
    return InsufficientMemory(f"model {entry.name!r} {found.words}: {', '.join(advice)}", param="model")


def needs_tiling(
    entry: Entry,
    files: Files,
    width: int,
    height: int,
    free: Available,
    backend: str,
    vae_conv_direct: bool = False,
) -> bool:
    """Whether a model that was loaded so can decode a picture of this size in tiles only."""
    wanted = estimate(
        files, entry.family, width, height, gpu=backend != "CPU", vae_conv_direct=vae_conv_direct
    )
    usable = free.usable
    room = usable.ram if backend == "CPU" or usable.vram is None else usable.vram
    return wanted.decode_tiled < wanted.decode and wanted.decode > room


def must_tile(
    entry: Entry,
    files: Files,
    settings: Settings,
    width: int,
    height: int,
    whole: Available,
    gpu: bool | None = None,
) -> bool:
    """Whether memory in which nothing is holds this model and such a picture only if it is decoded in tiles.

    `gpu` None: whether the engine uses one is not known; if it might do without tiles it is not made to.
    """
    kinds = (True, False) if gpu is None else (gpu,)
    found = [
        _judged(entry, files, settings, each, (width, height), whole)
        for each in kinds
        if whole.vram or not each
    ]
    return bool(found) and all(each.tiling for each in found)


def verdict(estimate: Estimate, free: Available) -> Verdict:
    """Whether it fits into what is usable, by tiled decoding if need be.

    Graphics memory that is not known is not asked for.
    """
    tiling = False
    if not _fits(estimate.memory(False), free.usable):
        tiling = estimate.total(True) < estimate.total(False)
    needed, kind = estimate.memory(tiling), "memory"
    needs, there = needed.ram, free.ram
    if needed.vram and free.vram is not None and needed.ram <= free.usable.ram:
        kind, needs, there = "graphics memory", needed.vram, free.vram
    decoding = (estimate.decode_tiled if tiling else estimate.decode, "decoding")
    work = max((estimate.activations, "sampling"), decoding)
    words = (
        f"needs about {_size(needs)} of {kind} for {estimate.width}x{estimate.height}"
        f"{' with tiled decoding' if tiling else ''}"
        f" ({_size(estimate.weights)} weights, {_size(work[0])} {work[1]});"
        f" {_size(usable(there))} of the {_size(there)} that are free may be used"
    )
    return Verdict(_fits(needed, free.usable), tiling, needs, there, words)


def _judged(
    entry: Entry, files: Files, settings: Settings, gpu: bool, size: tuple[int, int], free: Available
) -> Verdict:
    """As if ggml had none of our kernels, which need less; they are asked for where that is too much."""
    found = verdict(_estimate(entry, files, settings, gpu, size), free)
    if gpu or (found.fits and not found.tiling):
        return found
    return verdict(_estimate(entry, files, settings, gpu, size, kernels_here(settings.kernels)), free)


def _estimate(
    entry: Entry, files: Files, settings: Settings, gpu: bool, size: tuple[int, int], kernels: str = ""
) -> Estimate:
    width, height = size
    settings = entry.engine.over(settings)
    headers = {role: file for role, file in files.items() if isinstance(file, Header)}
    loaded = as_loaded(headers, weights_of(entry, headers, settings))
    options = LoadSpec(entry.name, {}, 1, **open_options(entry.family, settings))
    on_cpu = options.settled("CPU", kernels)
    return estimate(
        {**files, **loaded}, entry.family, width, height,
        gpu=gpu,
        offload_to_cpu=settings.offload_to_cpu,
        vae_on_cpu=settings.vae_on_cpu,
        text_encoders_on_cpu=settings.text_encoders_on_cpu,
        control_net_on_cpu=settings.control_net_on_cpu,
        max_vram=settings.max_vram,
        flash_attention=bool(on_cpu.flash_attention),
        vae_conv_direct=bool(on_cpu.vae_conv_direct),
    )  # fmt: skip


def weights_of(entry: Entry, headers: Mapping[Role, Header], settings: Settings) -> WeightType | None:
    """What a model's weights are converted to while they are loaded, None if they stay as they are."""
    return loaded_as(headers, entry.weight_type or settings.weight_type)


def _fits(needed: Memory, free: Available) -> bool:
    return needed.ram <= free.ram and (free.vram is None or needed.vram <= free.vram)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
