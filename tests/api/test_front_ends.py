"""What chat front ends really send, with their own defaults: requests recorded in November 2026 from
Open WebUI 0.12.4 and SillyTavern 1.19.0 before a server without flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.client import EDITS, GENERATIONS, noise, picture, png
from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine

CATALOG = """\
version: 1
models:
  small: &small
    family: ovis-image
    files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}
    defaults: {size: 128x128, steps: 2, cfg_scale: 1.0}
    limits: {max_side: 256, max_pixels: 65536}
    native: 128x128
  other: *small
"""
TXT2IMG = "/sdapi/v1/txt2img"
NO_KEY = {"Authorization": "Bearer "}
NO_AUTH = {"Authorization": "Basic "}
"""Sent where nobody has set a key, or a user and a password."""
PROMPT = "best quality, absurdres, aesthetic, a red apple"
NEGATIVE = (
    "lowres, bad anatomy, bad hands, text, error, cropped, worst quality, low quality, normal quality, jpeg"
    " artifacts, signature, watermark, username, blurry"
)
SILLY_AUTO: dict[str, Any] = {
    "url": "http://127.0.0.1:8080", "auth": "", "prompt": PROMPT, "negative_prompt": NEGATIVE,
    "sampler_name": "DDIM", "scheduler": "normal", "steps": 20, "cfg_scale": 7, "width": 512, "height": 512,
    "restore_faces": False, "enable_hr": False, "hr_upscaler": "Latent", "hr_scale": 1,
    "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0,
    "override_settings": {"CLIP_stop_at_last_layers": 1}, "override_settings_restore_afterwards": True,
    "clip_skip": 1, "save_images": True, "send_images": True, "do_not_save_grid": False,
    "do_not_save_samples": False,
}  # fmt: skip
"""Its source "Stable Diffusion Web UI (AUTOMATIC1111)"."""
SILLY_SDCPP: dict[str, Any] = {
    "model": "other", "prompt": PROMPT, "negative_prompt": NEGATIVE, "width": 512, "height": 512, "steps": 20,
    "cfg_scale": 7, "batch_size": 1, "sampler_name": "DDIM", "scheduler": "normal",
}  # fmt: skip
"""Its source "stable-diffusion.cpp", to which sampler and scheduler of another source may cling."""
SDCPP_SAMPLERS = (
    "euler", "euler_a", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "ipndm", "ipndm_v", "lcm",
    "ddim_trailing", "tcd",
)  # fmt: skip
SDCPP_SCHEDULERS = (
    "discrete", "karras", "exponential", "ays", "gits", "smoothstep", "sgm_uniform", "simple", "kl_optimal",
    "lcm",
)  # fmt: skip
"""Names that SillyTavern offers for that source, whatever the server says."""


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Any]:
    """Settings of a server with two models that draw 128x128."""
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(CATALOG)
    return {"engine": QuickEngine, "catalog": catalog, "model": "small"}


# -- Open WebUI ---------------------------------------------------------------------------------------


async def test_open_webuis_engine_openai(running: RunningApp, small: dict[str, Any]) -> None:
    """It takes an address where there is one, and refuses private ones: the pixels alone come."""
    bodies: list[dict[str, Any]] = [
        {"model": "dall-e-2", "size": "512x512", "response_format": "b64_json"},
        {"model": "gpt-image-1", "size": "512x512"},
        {"model": "gpt-image-1", "size": "auto"},
    ]
    async with running(**small) as app:
        for body in bodies:
            asked = {**body, "prompt": "a red apple", "n": 1}
            async with app.session.post(app.url + GENERATIONS, json=asked, headers=NO_KEY) as answer:
                assert answer.status == 200
                (item,) = (await answer.json())["data"]
            assert item.get("url") is None
            assert picture(item["b64_json"]).size == ((128, 128) if body["size"] == "auto" else (512, 512))


async def test_open_webuis_edits(running: RunningApp, small: dict[str, Any]) -> None:
    """Nobody has chosen a model, so that its field is empty; pictures come alone or in a list."""
    async with running(**small) as app:
        for name, more in (("image", {}), ("image[]", {"n": "2", "size": "512x512"})):
            texts = {"model": "", "prompt": "a dog", **more, "response_format": "b64_json"}
            form = aiohttp.FormData(texts)
            form.add_field(name, png(noise(200, 120)), filename="5f0c.png", content_type="image/png")
            async with app.session.post(app.url + EDITS, data=form, headers=NO_KEY) as answer:
                assert answer.status == 200
                made = (await answer.json())["data"]
            assert len(made) == int(texts.get("n", 1))
            assert all(item.get("url") is None and picture(item["b64_json"]) for item in made)


async def test_open_webuis_engine_automatic1111(running: RunningApp, small: dict[str, Any]) -> None:
    """50 steps by default; to choose a model it sends back all options that it was given."""
    async with running(**small) as app:
        body = {"prompt": "a red apple", "batch_size": 1, "width": 512, "height": 512, "steps": 50}
        status, answer = await app.post(TXT2IMG, **body)
        assert status == 200
        assert picture(answer["images"][0]).size == (512, 512)
        assert answer["info"]
        _, options = await app.get("/sdapi/v1/options", **NO_AUTH)
        _, models = await app.get("/sdapi/v1/sd-models", **NO_AUTH)
        (other,) = [each["title"] for each in models if each["model_name"] == "other"]
        status, _ = await app.post("/sdapi/v1/options", **{**options, "sd_model_checkpoint": other})
        assert status == 200
        assert (await app.get("/sdapi/v1/options"))[1]["sd_model_checkpoint"] == other
        _, answer = await app.post(TXT2IMG, **body)
        assert "Model: other" in picture(answer["images"][0]).info["parameters"]


# -- SillyTavern --------------------------------------------------------------------------------------


async def test_sillytaverns_source_automatic1111(running: RunningApp, small: dict[str, Any]) -> None:
    """Connect and the menus, a picture, one with hires fix and ADetailer, a sampler of somebody's own."""
    async with running(**small) as app:
        for path in ("options", "sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes"):
            status, found = await app.get(f"/sdapi/v1/{path}", **NO_AUTH)
            assert status == 200
            assert found
        assert (await app.get("/sdapi/v1/sd-modules"))[0] == 200
        status, answer = await app.post(TXT2IMG, **SILLY_AUTO)
        assert status == 200
        assert picture(answer["images"][0]).size == (512, 512)
        scripts = {"ADetailer": {"args": [True, True, {"ad_model": "face_yolov8n.pt"}]}}
        more = {"enable_hr": True, "hr_scale": 2, "restore_faces": True, "alwayson_scripts": scripts}
        status, answer = await app.post(TXT2IMG, **{**SILLY_AUTO, **more, "width": 128, "height": 128})
        assert status == 200
        assert picture(answer["images"][0]).size == (256, 256)
        chosen = {"sampler_name": "DPM++ 2M SDE Karras", "enable_hr": True}
        status, answer = await app.post(TXT2IMG, **{**SILLY_AUTO, **chosen})
        assert status == 200
        assert "Sampler: dpm++2m" in picture(answer["images"][0]).info["parameters"]
        assert any("'DPM++ 2M SDE Karras' is not known here" in each for each in answer["warnings"])


async def test_sillytaverns_source_sdcpp(running: RunningApp, small: dict[str, Any]) -> None:
    """Connect is an OPTIONS without an Origin; the chosen model draws, and an unknown one is no error."""
    async with running(**small) as app:
        async with app.session.options(app.url + GENERATIONS) as pinged:
            assert pinged.status == 204
        _, listed = await app.get("/v1/models")
        assert {"small", "other"} <= {each["id"] for each in listed["data"]}
        status, answer = await app.post(TXT2IMG, **SILLY_SDCPP)
        assert status == 200
        image = picture(answer["images"][0])
        assert image.size == (512, 512)
        assert "Model: other" in image.info["parameters"]
        status, answer = await app.post(TXT2IMG, **{**SILLY_SDCPP, "model": "sd_xl_base [31e35c80fc]"})
        assert status == 200
        assert "Model: small" in picture(answer["images"][0]).info["parameters"]
        assert "model: there is no 'sd_xl_base [31e35c80fc]' here; 'small' was used" in answer["warnings"]


async def test_the_names_that_sillytavern_offers(running: RunningApp, small: dict[str, Any]) -> None:
    async with running(**small) as app:
        for sampler, scheduler in zip(SDCPP_SAMPLERS, (*SDCPP_SCHEDULERS, "ays", "gits"), strict=True):
            body = {**SILLY_SDCPP, "sampler_name": sampler, "scheduler": scheduler}
            assert (await app.post(TXT2IMG, **body))[0] == 200, (sampler, scheduler)
