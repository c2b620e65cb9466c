"""How large the tiles are in which a VAE decodes a picture that memory cannot hold at once."""

from __future__ import annotations

import math

OVERLAP = 0.25
"""Of a tile's side; sd.cpp blends what lies there."""
SIDE = 40
"""The most latent pixels a side, a tenth of the area of 1024x1024; sd.cpp has 32."""
LARGE_LATENTS = ("flux2", "ernie-image")


def latent_scale(family: str) -> int:
    """Pixels of a picture to one of its latent, a side (`VAE::get_scale_factor` in vae.hpp)."""
    if family == "chroma-radiance":
        return 1
    return 16 if family in LARGE_LATENTS else 8


def tile_of(family: str, width: int, height: int) -> tuple[int, int]:
    """Width and height in latent pixels of the tiles for a picture of so many pixels.

    As few as may be, and all of one size: what sd.cpp does with a fixed side can be twice the work.
    """
    scale = latent_scale(family)
    return _side(width // scale), _side(height // scale)


def count_of(family: str, size: tuple[int, int], tile: tuple[int, int], overlap: float) -> int:
    """How many tiles it takes for a picture of so many pixels (`sd_tiling_calc_tiles` in ggml_extend.hpp)."""
    scale = latent_scale(family)
    across, down = (_count(side // scale, one, overlap) for side, one in zip(size, tile, strict=True))
    return across * down


def _count(length: int, tile: int, overlap: float) -> int:
    shared = int(tile * overlap)
    step = tile - shared
    if length <= tile:
        return 1
    count = (length - shared) // step
    beyond = ((count + 1) * step + shared) % length
    if beyond != step and beyond <= count * (tile // 2 - shared):
        count += 1  # without an overlap of more than a half
    return max(count, 2)


def _side(length: int) -> int:
    if length <= SIDE:
        return length
    count = math.ceil((length / SIDE - OVERLAP) / (1 - OVERLAP))
    return math.ceil(length / (count - (count - 1) * OVERLAP))
