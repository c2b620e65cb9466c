"""The golden picture: whether a build of the engine draws the embedded model as it must.

`scripts/wheels/golden.py` made it. ggml's own code rounds what it multiplies with
quantised weights, ours does not, so that there is one picture of each kind (35 dB apart).
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from gguf_imagegen.catalog.entry import PACKAGED
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.levels import VARIABLE
from gguf_imagegen.pictures.nearness import psnr
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate, LoadSpec
from gguf_imagegen.vocabulary.errors import ImagegenError
from gguf_imagegen.vocabulary.events import Loaded, Made

LEAST_PSNR: Final = 40.0
"""Builds of one kind differ in the order of sums: by 60 dB and more (docs/install.md)."""
OURS: Final = PACKAGED / "golden.png"
GGMLS: Final = PACKAGED / "golden-ggml.png"
STALL: Final = 60.0
"""Seconds without a sign of life after which a build is given up."""
MODEL: Final = ("embedded.gguf", "embedded-tae.gguf")
PICTURE: Final = Generate(
    prompt="a red apple", negative_prompt="", width=128, height=128, steps=4, sampler="euler",
    schedule="discrete", cfg_scale=1.0, image_cfg_scale=1.0, guidance=3.5, seed=5, n=1, clip_skip=-1,
    eta=None, flow_shift=None, step_cache="none", step_cache_threshold=None, strength=1.0, vae_tiling=False,
    init_image=None, mask=None, ref_images=(), control_image=None, control_strength=1.0, loras=(), hires=None,
    skip_layers=None, preview="none", preview_steps=(), preview_interval=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class Likeness:
    """How near a build's picture is to the golden one, in dB; `fault` says why there is none."""

    psnr: float = 0.0
    fault: str = ""

    @property
    def right(self) -> bool:
        return self.psnr >= LEAST_PSNR

    @property
    def words(self) -> str:
        return self.fault or f"{self.psnr:.0f} dB from the golden picture"


def checked(library: Path, threads: int) -> Likeness:
    """Draw the golden picture with a library, in a process of its own: a second or two."""
    device = Device(threads=threads, environment={VARIABLE: str(library)})
    return asyncio.run(likeness(EngineProcess(stall_timeout=STALL, device=device), threads))


async def likeness(engine: Engine, threads: int) -> Likeness:
    """Of what an engine draws; closes it."""
    model, tiny = (PACKAGED / name for name in MODEL)
    spec = LoadSpec("golden", {"model": model, "taesd": tiny}, threads)
    try:
        kernels = ""
        async for event in engine.load(spec):
            if isinstance(event, Loaded):
                kernels = event.kernels
        made = [event.artifact async for event in engine.run(PICTURE) if isinstance(event, Made)]
    except ImagegenError as exc:
        return Likeness(fault=str(exc))
    finally:
        await engine.close()
    return Likeness(nearness(made[0], OURS if kernels else GGMLS)) if made else Likeness(fault="no picture")


def nearness(image: RawImage, golden: Path) -> float:
    """In dB; 0 for a picture of another size."""
    with Image.open(golden) as picture:
        return psnr(image.data, picture.convert("RGB").tobytes())


def digest() -> str:
    """Of what builds are compared with."""
    return hashlib.sha256(OURS.read_bytes() + GGMLS.read_bytes()).hexdigest()
