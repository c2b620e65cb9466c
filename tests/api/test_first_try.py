"""What clients send without having asked what the model can: the first try is a picture."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Literal

import aiohttp
import numpy as np
import openai
import pytest
from PIL import Image

from tests.api.client import EDITS, GENERATIONS, SMALL, noise, picture, png
from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine
from tests.weights import write_upscaler

DRAWS_128 = """\
version: 1
models:
  small:
    family: ovis-image
    files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}
    defaults: {size: 128x128, steps: 2, cfg_scale: 1.0}
    limits: {max_side: 256, max_pixels: 65536}
    native: 128x128
"""


SIZES: tuple[Literal["1024x1024", "1792x1024", "1024x1536"], ...] = ("1024x1024", "1792x1024", "1024x1536")


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Settings of a server whose default model draws 128x128."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(DRAWS_128)
    return {"engine": QuickEngine, "catalog": catalog, "model": "small"}


def text_of(image: Image.Image) -> str:
    return str(image.info["parameters"])


# -- sizes --------------------------------------------------------------------------------------------


async def test_sizes_that_openai_knows(running: RunningApp, small: dict[str, Any]) -> None:
    """openai-python with OpenAI's own sizes: exactly these come, and the text tells what was made."""
    async with running(**small) as app, openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="x") as client:
        for size in SIZES:
            made = (await client.images.generate(prompt="a cat", size=size)).model_dump()
            assert made["size"] == size
            image = picture(made["data"][0]["b64_json"])
            assert f"{image.width}x{image.height}" == size
            warning = made["warnings"][0]
            assert warning.startswith("size: small draws ")
            drawn = warning.split()[3].rstrip(";")
            assert f"Size: {drawn}" in text_of(image)
            assert f"Postprocess upscale to: {size}, Postprocess upscaler: Lanczos" in text_of(image)
            assert made["data"][0]["width"] == image.width


async def test_open_webuis_request(running: RunningApp, small: dict[str, Any]) -> None:
    """`IMAGE_SIZE` is 512x512 unless somebody changes it, for both of the engines that it may have here."""
    async with running(**small) as app:
        body = {"model": "small", "prompt": "a cat", "n": 1, "size": "512x512", "response_format": "b64_json"}
        status, answer = await app.post(GENERATIONS, **body)
        assert (status, answer["size"]) == (200, "512x512")
        status, answer = await app.post(
            "/sdapi/v1/txt2img", prompt="a cat", batch_size=1, width=512, height=512, cfg_scale=7.0
        )
        assert status == 200
        assert picture(answer["images"][0]).size == (512, 512)
        assert "size: small draws 128x128; enlarged to 512x512" in answer["warnings"]


async def test_kept_pixels_stay_exact(running: RunningApp, small: dict[str, Any]) -> None:
    """An edit with a mask beyond the model: outside of the mask every pixel is the one that was sent."""
    original = noise(512, 384)
    mask = np.zeros((384, 512), np.uint8)
    mask[100:200, 200:333] = 255
    async with running(**small) as app:
        form = aiohttp.FormData({"prompt": "a hat", "size": "512x384"})
        form.add_field("image", png(original), filename="a.png")
        form.add_field("mask", png(Image.fromarray(mask)), filename="m.png")
        async with app.session.post(app.url + EDITS, data=form) as answer:
            body = await answer.json()
    assert body["size"] == "512x384"
    made = np.asarray(picture(body["data"][0]["b64_json"]))
    kept = mask == 0
    assert (made[kept] == np.asarray(original)[kept]).all()
    assert (made[~kept] == 128).all()


async def test_the_administrators_upscaler_is_used(
    running: RunningApp, small: dict[str, Any], tmp_path: Path
) -> None:
    """By name of its file, beside an upscale that the request wants, and under a mask."""
    write_upscaler(tmp_path / "double.gguf", 2)
    chosen = {**small, "upscaler_dir": tmp_path, "oversize": "double"}
    original = noise(256, 512)
    async with running(**chosen) as app:
        _, answer = await app.post(GENERATIONS, **{**SMALL, "size": "512x512", "n": 2})
        made = [picture(item["b64_json"]) for item in answer["data"]]
        assert [image.size for image in made] == [(512, 512)] * 2
        assert "Size: 128x128" in text_of(made[1])
        assert "Postprocess upscaler: double" in text_of(made[1])
        _, answer = await app.post(GENERATIONS, **{**SMALL, "size": "512x256", "upscale": 1.5})
        assert answer["size"] == "768x384"
        fields = {"prompt": "a hat", "size": "256x512", "image": base64.b64encode(png(original)).decode()}
        mask = png(half_white(256, 512))
        _, answer = await app.post(EDITS, **fields, mask=base64.b64encode(mask).decode())
        kept = np.asarray(picture(answer["data"][0]["b64_json"]))[256:]
        assert (kept == np.asarray(original)[256:]).all()


def half_white(width: int, height: int) -> Image.Image:
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width, height // 2))
    return mask


async def test_an_unknown_upscaler_is_no_server(running: RunningApp, small: dict[str, Any]) -> None:
    """What the administrator mistyped is said at once, not with the first large picture."""
    with pytest.raises(Exception, match="no upscaler 'lancsoz'"):
        async with running(**small, oversize="lancsoz"):
            pass


async def test_refuse(running: RunningApp, small: dict[str, Any]) -> None:
    """`--oversize refuse` is a 400 for what the model does not draw, in whatever dialect."""
    async with running(**small, oversize="refuse") as app:
        for size in ("512x512", "32x32"):
            status, answer = await app.post(GENERATIONS, prompt="a cat", size=size)
            assert (status, answer["error"]["code"]) == (400, "invalid_size")
        status, answer = await app.post("/sdapi/v1/txt2img", prompt="a cat", width=512, height=512)
        assert (status, answer["error"]["code"]) == (400, "invalid_size")


async def test_hires_of_automatic1111(running: RunningApp, small: dict[str, Any]) -> None:
    """512x512, twice as large in a second pass: 1024x1024 come, and `info` says so."""
    async with running(**small) as app:
        status, answer = await app.post(
            "/sdapi/v1/txt2img", prompt="a cat", width=512, height=512, enable_hr=True, hr_scale=2,
            hr_upscaler="Latent", denoising_strength=0.7,
        )  # fmt: skip
    assert status == 200
    assert '"width": 1024, "height": 1024' in answer["info"]
    assert picture(answer["images"][0]).size == (1024, 1024)
