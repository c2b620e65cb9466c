"""The tiles of a VAE: few, of one size, and as many as the engine then makes."""

from __future__ import annotations

import pytest

from gguf_imagegen.catalog.tiles import OVERLAP, SIDE, count_of, latent_scale, tile_of

SIZES = [(512, 512), (768, 512), (1024, 1024), (1152, 864), (1536, 1536), (2048, 512), (4096, 1024)]


def work(family: str, size: tuple[int, int], tile: tuple[int, int], overlap: float) -> float:
    """The pixels decoded for one of the picture."""
    scale = latent_scale(family)
    pixels = tile[0] * tile[1] * scale**2
    return count_of(family, size, tile, overlap) * pixels / (size[0] * size[1])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", ["sdxl", "flux2"])
def test_tiles_of_our_choice_are_less_work(family: str, size: tuple[int, int]) -> None:
    """Within their bound, and never more work than the engine's own; no more than 1.75 times the picture."""
    tile = tile_of(family, *size)
    assert max(tile) <= SIDE
    assert work(family, size, tile, OVERLAP) <= min(1.75, work(family, size, (32, 32), 0.5))


def test_at_1024_it_is_half() -> None:
    """In 16 tiles, where the engine's own are 49."""
    ours, engines = ((40, 40), OVERLAP), ((32, 32), 0.5)
    assert tile_of("sdxl", 1024, 1024) == (40, 40)
    assert [count_of("sdxl", (1024, 1024), *each) for each in (ours, engines)] == [16, 49]
    assert work("sdxl", (1024, 1024), *ours) < 0.52 * work("sdxl", (1024, 1024), *engines)


def test_what_fits_into_a_tile_is_one() -> None:
    """A picture no larger than a tile, and a side that is not."""
    assert (tile_of("sdxl", 320, 256), count_of("sdxl", (320, 256), (40, 32), OVERLAP)) == ((40, 32), 1)
    assert tile_of("sdxl", 1024, 256) == (40, 32)
