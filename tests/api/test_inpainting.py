"""Inpainting as AUTOMATIC1111's users know it: only the masked part, soft borders, fills; styles, tiles."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from gguf_imagegen.pictures import insets, masks
from gguf_imagegen.vocabulary.artifacts import RawImage
from tests.api.client import EDITS, SMALL, data_url, noise, picture, png
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import QuickEngine

GREY = 128
"""What the quick engine paints."""


@pytest_asyncio.fixture
async def quick(running: RunningApp) -> AsyncIterator[App]:
    async with running(engine=QuickEngine) as app:
        yield app


def spot(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A mask that is white in a rectangle."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


async def img2img(app: App, **fields: Any) -> Any:
    status, body = await app.post("/sdapi/v1/img2img", prompt="a hat", steps=1, **fields)
    assert status == 200, body
    return body


BIG, BOX = (320, 240), (250, 50, 290, 80)


@pytest.mark.parametrize("dialect", ["a1111", "own"])
async def test_only_masked(quick: App, dialect: str) -> None:
    """The picture keeps its size and, outside the mask, its pixels; inside is what was drawn."""
    before = noise(*BIG)
    image, mask = data_url(png(before)), data_url(png(spot(BIG, BOX)))
    if dialect == "a1111":
        body = await img2img(
            quick, init_images=[image], mask=mask, inpaint_full_res=True, inpaint_full_res_padding=32,
            width=128, height=128, mask_blur=0, inpainting_fill=1,
        )  # fmt: skip
        made = picture(body["images"][0])
        assert body["warnings"] == []
    else:
        asked = {
            "image": image,
            "mask": mask,
            "only_masked": True,
            "size": "128x128",
            "prompt": "a",
            "steps": 1,
        }
        status, body = await quick.post(EDITS, **asked)
        assert (status, body["size"], body["warnings"]) == (200, "320x240", [])
        made = picture(body["data"][0]["b64_json"])
    assert made.size == BIG
    repaint = np.asarray(spot(BIG, BOX)) > 0
    assert np.array_equal(np.asarray(made)[~repaint], np.asarray(before)[~repaint])
    assert (np.asarray(made)[repaint] == GREY).all()
    _, jobs = await quick.get("/v1/jobs")
    assert jobs["data"][0]["settings"]["Inpaint area"] == "Only masked"
    assert jobs["data"][0]["parameters"]["width"] == 320


async def test_a_soft_border(quick: App) -> None:
    """`mask_blur` mixes at the border; far from it both sides are exact."""
    image, mask = png(noise(128, 128)), png(spot((128, 128), (64, 0, 128, 128)))
    asked = {"image": data_url(image), "mask": data_url(mask), "mask_blur": 4, "prompt": "a", "steps": 1}
    _, body = await quick.post(EDITS, **asked, size="128x128")
    before, after = np.asarray(noise(128, 128)), np.asarray(picture(body["data"][0]["b64_json"]))
    assert np.array_equal(after[:, :40], before[:, :40])
    assert (after[:, 90:] == GREY).all()
    mixed = after[:, 60:68]
    assert not np.array_equal(mixed, before[:, 60:68])
    assert (mixed != GREY).any()


@pytest.mark.parametrize("fields", [{"hires": {"scale": 2}}, {"mask_blur": 65}, {"mask_fill": "noise"}])
async def test_what_cannot_be(quick: App, fields: dict[str, Any]) -> None:
    image, mask = data_url(png(noise(64, 64))), data_url(png(spot((64, 64), (0, 0, 32, 32))))
    status, body = await quick.post(EDITS, **SMALL, image=image, mask=mask, only_masked=True, **fields)
    assert (status, body["error"]["code"]) == (400, "invalid_request")


async def test_only_masked_without_a_mask(quick: App) -> None:
    _, body = await quick.post(EDITS, **SMALL, image=data_url(png(noise(64, 64))), only_masked=True)
    assert body["warnings"] == ["only_masked: has no effect without a mask"]


@pytest.mark.parametrize(("fill", "warned"), [(0, False), (1, False), (2, True), (3, True)])
async def test_fills(quick: App, fill: int, warned: bool) -> None:
    """Fill and original are done; what fills latents becomes fill, with a warning."""
    image, mask = data_url(png(noise(64, 64))), data_url(png(spot((64, 64), (0, 0, 32, 32))))
    body = await img2img(quick, init_images=[image], mask=mask, width=64, height=64, inpainting_fill=fill)
    assert [each for each in body["warnings"] if "inpainting_fill" in each] == (
        [f"inpainting_fill: the engine takes no latents; 'fill' was used for {said!r}"]
        if warned and (said := ("latent noise", "latent nothing")[fill - 2])
        else []
    )


def test_a_fill_has_the_colours_around() -> None:
    """The white part of the mask becomes what surrounds it; nothing of what was there is left."""
    image = Image.new("RGB", (64, 64), (10, 200, 30))
    image.paste((255, 0, 0), (24, 24, 40, 40))
    mask = RawImage(64, 64, 1, spot((64, 64), (24, 24, 40, 40)).tobytes())
    filled = np.asarray(masks.filled(image, mask)).astype(int)
    assert np.abs(filled - (10, 200, 30)).max() <= 8


@pytest.mark.parametrize(
    ("box", "padding", "size", "expected"),
    [
        ((10, 10, 20, 20), 0, (64, 64), (10, 10, 10, 10)),
        ((10, 10, 20, 20), 5, (64, 64), (5, 5, 20, 20)),
        ((0, 0, 4, 4), 8, (128, 64), (0, 0, 24, 12)),
        ((90, 90, 100, 100), 0, (128, 64), (80, 90, 20, 10)),
        ((0, 40, 100, 60), 0, (64, 128), (0, 0, 100, 100)),
    ],
)
def test_the_part_around_a_mask(
    box: tuple[int, int, int, int], padding: int, size: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    """Padded, in the aspect of what is drawn, and never beyond the picture."""
    mask = RawImage(100, 100, 1, spot((100, 100), box).tobytes())
    inset = insets.around(mask, padding, size)
    assert (inset.left, inset.top, inset.width, inset.height) == expected


# -- styles and tiles ---------------------------------------------------------------------------------


async def test_styles(running: RunningApp, tmp_path: Path) -> None:
    """AUTOMATIC1111's CSV file: listed, put around the prompt or after it; an unknown one warns."""
    path = tmp_path / "styles.csv"
    path.write_text(
        '\ufeffname,prompt,negative_prompt\nink,"ink drawing of {prompt}",colour\nfog,"fog, mist",\n'
    )
    async with running(engine=QuickEngine, styles=path) as app:
        _, listed = await app.get("/sdapi/v1/prompt-styles")
        assert listed[0] == {"name": "ink", "prompt": "ink drawing of {prompt}", "negative_prompt": "colour"}
        asked = {"prompt": "a fox", "width": 64, "height": 64, "steps": 1, "styles": ["ink", "fog", "wax"]}
        _, body = await app.post("/sdapi/v1/txt2img", **asked, cfg_scale=1)
        _, jobs = await app.get("/v1/jobs")
        assert jobs["data"][0]["parameters"]["prompt"] == "ink drawing of a fox, fog, mist"
        assert jobs["data"][0]["parameters"]["negative_prompt"] == "colour"
        assert "styles: no style 'wax'; known: ink, fog" in body["warnings"]
        assert body["parameters"]["prompt"] == "a fox"


async def test_tiles(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """`tiling` reaches the engine: the picture is another one, and without it the first again."""
    made = []
    for fields in ({}, {"tiling": True}, {}):
        asked = {"prompt": "a wall", "width": 64, "height": 64, "steps": 2, "seed": 3, **fields}
        async with session.post(f"{server.url}/sdapi/v1/txt2img", json=asked) as answer:
            body = await answer.json()
            assert answer.status == 200, body
        made.append(base64.b64decode(body["images"][0]))
    assert picture(made[0]).tobytes() != picture(made[1]).tobytes()
    assert picture(made[0]).tobytes() == picture(made[2]).tobytes()
