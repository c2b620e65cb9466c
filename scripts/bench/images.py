"""What the file of a finished picture costs, by format and effort, as detailed as a photograph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from gguf_imagegen.pictures import encode
from scripts.bench.figures import Run
from scripts.bench.server import now

SIDE = 1024
GRAIN = 3.0
"""Standard deviation, of 255 levels, of what is drawn over smooth colours."""
COMPRESSIONS = (0, 11, 33, 67, 100)
"""OpenAI's output_compression for zlib's levels 0, 1, 3, 6 and 9."""


async def encoding(run: Run) -> None:
    """Each format once a round; PNG at level 1 is the default."""
    rgb = picture()
    ways: dict[str, Callable[[], bytes]] = {
        f"PNG, level {round(each * 9 / 100)}": partial(
            encode.encode, rgb, SIDE, SIDE, format="png", compression=each
        )
        for each in COMPRESSIONS
    }
    ways["JPEG"] = lambda: encode.encode(rgb, SIDE, SIDE, format="jpeg")
    ways["WebP"] = lambda: encode.encode(rgb, SIDE, SIDE, format="webp")
    ways["preview, JPEG"] = lambda: encode.encode_preview(rgb, SIDE, SIDE)
    times: dict[str, list[float]] = {name: [] for name in ways}
    sizes = {}
    for _ in run.rounds(run.repeats):
        for name, way in ways.items():
            began = now()
            sizes[name] = len(way()) / 1e6
            times[name].append(1000 * (now() - began))
    for name, taken in times.items():
        run.tell(f"{SIDE}x{SIDE} as {name}: {sizes[name]:.2f} MB", "ms", taken)


def picture() -> bytes:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
    return (smooth + rng.normal(0, GRAIN, smooth.shape)).clip(0, 255).astype(np.uint8).tobytes()
