"""Sizes beyond a model: drawn as it can in their aspect, enlarged to exactly what was asked for."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.modelfiles.traits import traits_of
from gguf_imagegen.planning.bounds import LEAST_SIDE, MOST_ASPECT, Bounds
from gguf_imagegen.planning.canvas import Canvas, canvas_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest, InvalidSize
from tests.planning.test_plan import entry, picture, planned
from tests.weights import write_upscaler

SMALL: dict[str, Any] = {"limits": {"max_side": 256, "max_pixels": 65536}, "native": "128x128"}
FAMILIES = ("sd1", "sd2", "sdxl", "sd3", "flux", "flux2", "chroma", "ovis-image", "qwen-image", "z-image")


def canvas(width: int, height: int, model: Entry | None = None, **settings: Any) -> tuple[Canvas, list[str]]:
    notes: list[str] = []
    return canvas_of((width, height), model or entry(**SMALL), Settings(**settings), notes), notes


@pytest.mark.parametrize(
    ("size", "drawn", "aligned"),
    [
        ((512, 512), (128, 128), (128, 128)),
        ((768, 768), (128, 128), (128, 128)),
        ((1024, 1024), (128, 128), (128, 128)),
        ((1792, 1024), (168, 96), (176, 96)),
        ((1024, 1536), (107, 160), (112, 160)),
        ((2048, 256), (256, 32), (256, 64)),
    ],
)
def test_what_clients_send_without_asking(
    size: tuple[int, int], drawn: tuple[int, int], aligned: tuple[int, int]
) -> None:
    """It is made at the model's native area, in that aspect, and delivered as asked."""
    found, notes = canvas(*size)
    assert found.delivered == size
    assert notes == [f"size: some-model draws {drawn[0]}x{drawn[1]}; enlarged to {size[0]}x{size[1]}"]
    assert (found.drawn, found.aligned) == (drawn, aligned)


def test_without_a_native_size_the_largest_is_drawn() -> None:
    """A model whose entry says nothing draws as much as its limits allow."""
    found, _ = canvas(1024, 1024, entry(limits={"max_pixels": 65536}))
    assert found.aligned == (256, 256)


def test_what_the_model_makes_is_left_alone() -> None:
    """No size within the limits is touched, aligned or not."""
    for size in ((256, 256), (130, 250), (64, 256)):
        found, notes = canvas(*size)
        assert (found.drawn, found.delivered, notes) == (size, size, [])


@pytest.mark.parametrize(
    ("size", "raised"),
    [((1, 1), (64, 64)), ((32, 200), (64, 400)), ((63, 64), (64, 65)), ((8, 64), (64, 512))],
)
def test_too_small_is_raised(size: tuple[int, int], raised: tuple[int, int]) -> None:
    """To the least side, in its aspect; the answer says so."""
    found, notes = canvas(*size, entry())
    assert found.delivered == raised
    assert f"{size[0]}x{size[1]} was raised to {raised[0]}x{raised[1]}" in notes[0]


@given(st.sampled_from(FAMILIES), st.integers(1, 4096), st.integers(1, 4096), st.integers(4096, 10**6))
def test_the_canvas_of_any_size(family: str, width: int, height: int, most: int) -> None:
    """Refused for the server's sake, or within the model's bounds, of its multiple, and in the aspect."""
    model = entry(family, limits={"max_side": 1024, "max_pixels": most})
    settings, notes = Settings(), list[str]()
    refused = max(width, height) > MOST_ASPECT * min(width, height) or width * height > settings.max_pixels
    try:
        found = canvas_of((width, height), model, settings, notes)
    except InvalidSize:
        assert refused
        return
    assert not refused
    bounds, multiple = Bounds.of(model, settings), model.traits.multiple
    assert all(side % multiple == 0 and side >= LEAST_SIDE for side in found.aligned)
    assert all(drawn <= whole for drawn, whole in zip(found.drawn, found.aligned, strict=True))
    if min(width, height) >= LEAST_SIDE:
        assert found.delivered == (width, height)
    if found.drawn != found.delivered:
        least = -(-LEAST_SIDE // multiple) * multiple
        assert max(found.aligned) <= max(bounds.side, least)
        assert found.aligned[0] * found.aligned[1] <= bounds.pixels or min(found.aligned) == least
        exact = found.drawn[0] * height / width
        assert abs(found.drawn[1] - exact) <= 1 + height / width
        assert notes


def test_refuse_gives_the_errors_back() -> None:
    """An administrator may want a 400."""
    for size, words in (((512, 512), "too large for some-model"), ((32, 64), "too small")):
        with pytest.raises(InvalidSize, match=words):
            canvas(*size, oversize="refuse")


def test_the_servers_limits_are_errors() -> None:
    """They are the administrator's, and so is a caller's bound on pixels."""
    for size, settings in (((512, 512), {"max_side": 256}), ((512, 512), {"max_pixels": 65536})):
        with pytest.raises(InvalidSize, match="too large for this server"):
            canvas(*size, entry(), **settings)


def test_hires_targets_are_fitted() -> None:
    """The second pass is as large as the model makes; the picture has the size that was asked for."""
    made = planned(entry(**SMALL), size="512x512", hires={"scale": 2})
    assert made.spec.hires is not None
    assert (made.spec.width, made.spec.hires.width, made.spec.hires.height) == (128, 256, 256)
    assert (made.drawn, made.delivered) == ((256, 256), (1024, 1024))
    assert made.warnings == (
        "size: some-model draws 128x128; enlarged to 512x512",
        "hires: some-model draws 256x256; enlarged to 1024x1024",
    )
    within = planned(entry(**SMALL), size="128x128", hires={"scale": 2})
    assert (within.drawn, within.delivered, within.warnings) == ((256, 256), (256, 256), ())
    with pytest.raises(InvalidSize, match=r"hires: .* too large for some-model"):
        planned(entry(**SMALL), settings={"oversize": "refuse"}, size="128x128", hires={"scale": 4})


def test_a_mask_in_both_sizes() -> None:
    """The engine repaints at least what the mask does; kept pixels are those of the size delivered."""
    mask = np.zeros((512, 512), np.uint8)
    mask[100, 100] = 255
    sent = picture_of(mask)
    made = planned(entry(**SMALL), "edit", image=picture(512, 512), mask=sent, size="512x512")
    spec = made.spec
    assert spec.init_image is not None
    assert spec.mask is not None
    assert made.original is not None
    assert made.mask is not None
    assert (spec.init_image.width, spec.mask.width, made.original.width, made.mask.width) == (
        128, 128, 512, 512,
    )  # fmt: skip
    assert sum(value > 0 for value in spec.mask.data) == 1
    assert sum(value > 0 for value in made.mask.data) == 1


def picture_of(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_the_administrators_upscaler(tmp_path: Path) -> None:
    """A file of the folder of upscalers in the place of Lanczos; one that is not there is named."""
    write_upscaler(tmp_path / "double.gguf", 2)
    settings = {"oversize": "double", "upscaler_dir": tmp_path}
    assert planned(entry(**SMALL), settings=settings, size="512x512").enlarger == tmp_path / "double.gguf"
    assert planned(entry(**SMALL), settings=settings, size="128x128").enlarger is None
    with pytest.raises(InvalidRequest, match="no upscaler 'treble'"):
        planned(entry(**SMALL), settings={**settings, "oversize": "treble"}, size="512x512")


def test_every_shipped_model_draws_what_clients_send() -> None:
    """Whatever the family, no size that a client sends by itself is an error."""
    settings = Settings()
    for model in load_catalog(Path("models")).entries:
        if traits_of(model.family) is None:
            continue
        for size in ((256, 256), (512, 512), (768, 768), (1024, 1024), (1024, 1792), (1536, 1024)):
            found = canvas_of(size, model, settings, [])
            assert found.delivered == size
            assert max(found.aligned) <= max(Bounds.of(model, settings).side, 64), model.id
