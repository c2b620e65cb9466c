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


# -- nothing is not something -------------------------------------------------------------------------


async def test_open_webuis_automatic1111_request(running: RunningApp, small: dict[str, Any]) -> None:
    """Its backend sends what nobody set as null, and a scale without an upscaler."""
    async with running(**small) as app:
        body = {
            "prompt": "a cat", "batch_size": 1, "width": 512, "height": 512, "steps": 0,
            "negative_prompt": None, "sampler_name": "", "scheduler": None, "cfg_scale": None,
        }  # fmt: skip
        status, answer = await app.post("/sdapi/v1/txt2img", **body)
        assert status == 200
        assert len(answer["images"]) == 1


async def test_an_empty_prompt_under_sdapi(running: RunningApp, small: dict[str, Any]) -> None:
    """Legal there, as it is in AUTOMATIC1111; OpenAI's routes want one."""
    async with running(**small) as app:
        for body in ({}, {"prompt": ""}):
            status, _ = await app.post("/sdapi/v1/txt2img", steps=1, **body)
            assert status == 200
            status, answer = await app.post(GENERATIONS, **body)
            assert (status, answer["error"]["param"]) == (400, "prompt")


async def test_forms_of_browsers(running: RunningApp, small: dict[str, Any]) -> None:
    """Every input of a form is sent, also those that nobody filled in."""
    async with running(**small) as app:
        form = aiohttp.FormData({"prompt": "a cat", "size": "", "n": "", "seed": "", "stream_options": ""})
        form.add_field("image", png(noise(64, 64)), filename="a.png")
        form.add_field("mask", b"", filename="", content_type="application/octet-stream")
        async with app.session.post(app.url + EDITS, data=form) as answer:
            assert answer.status == 200, await answer.text()


async def test_what_sdcpps_page_sends(running: RunningApp, small: dict[str, Any]) -> None:
    """It sends the capabilities' defaults back whole: nulls, empty lists, zeros and all."""
    async with running(**small) as app:
        _, known = await app.get("/sdcpp/v1/capabilities")
        body = {
            **known["defaults"], "prompt": "a cat", "width": 512, "height": 512, "init_image": None,
            "ref_images": [], "mask_image": "", "control_image": None, "lora": [],
        }  # fmt: skip
        status, answer = await app.post("/sdcpp/v1/img_gen", **body)
        assert status == 202
        assert "size: small draws 128x128; enlarged to 512x512" in answer["warnings"]


# -- names and lists ----------------------------------------------------------------------------------


async def test_names_of_openai(running: RunningApp, small: dict[str, Any]) -> None:
    """openai-python's own model names draw with the default model; its edits, and chat, alike."""
    async with running(**small) as app, openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="x") as client:
        for name in ("dall-e-2", "dall-e-3", "gpt-image-1", "gpt-image-1-mini"):
            made = (await client.images.generate(prompt="a cat", model=name, size="256x256")).model_dump()
            assert made["warnings"] == [f"model: there is no {name!r} here; 'small' was used"]
            (item,) = made["data"]
            assert item["b64_json"]
            assert bool(item["url"]) is name.startswith("dall-e")
        said = await client.chat.completions.create(
            model="gpt-image-1", messages=[{"role": "user", "content": "a cat"}]
        )
        assert said.model == "small"
        with pytest.raises(openai.NotFoundError):
            await client.images.generate(prompt="a cat", model="gpt-4o")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("dall-e-3")


async def test_any_model(running: RunningApp, small: dict[str, Any]) -> None:
    """With the flag every unknown name draws; management never guesses."""
    async with running(**small, any_model=True) as app:
        for name in ("gpt-4o", "stabilityai/sdxl", "sd_xl_base_1.0.safetensors [31e35c80fc]"):
            status, answer = await app.post(GENERATIONS, **{**SMALL, "model": name})
            assert (status, answer["model"]) == (200, "small")
            assert answer["warnings"][0].startswith(f"model: there is no {name!r} here")
            checkpoint = {"override_settings": {"sd_model_checkpoint": name}}
            status, answer = await app.post("/sdapi/v1/txt2img", prompt="a cat", steps=1, **checkpoint)
            assert status == 200
            assert any("there is no" in each for each in answer["warnings"])
        for path in ("/v1/models/gpt-4o/load", "/v1/models/gpt-4o/unload"):
            assert (await app.post(path))[0] == 404
        assert (await app.post("/sdapi/v1/options", sd_model_checkpoint="gpt-4o"))[0] == 404


async def test_aliases(running: RunningApp, small: dict[str, Any]) -> None:
    """`--alias NAME=ID`: on every route, with a slash in it; one that leads nowhere is said."""
    aliases = ("org/pictures=small", "dall-e-3=tiny-random")
    async with running(**small, alias=aliases) as app:
        status, answer = await app.post(GENERATIONS, **{**SMALL, "model": "org/pictures"})
        assert (status, answer["model"], answer["warnings"]) == (200, "org/pictures", [])
        _, answer = await app.post(GENERATIONS, **{**SMALL, "model": "dall-e-3"})
        assert (answer["model"], answer["warnings"]) == ("dall-e-3", [])
        assert (await app.get("/v1/models/dall-e-3"))[1]["id"] == "tiny-random"
    for wrong, words in (("x=nobody", "there is no model 'nobody'"), ("x", "is not NAME=ID")):
        with pytest.raises(Exception, match=words):
            async with running(**small, alias=(wrong,)):
                pass


async def test_an_unknown_name_is_told_what_is_here(running: RunningApp, small: dict[str, Any]) -> None:
    """Not the forty models that could be downloaded."""
    async with running(**small) as app:
        status, answer = await app.post(GENERATIONS, **{**SMALL, "model": "zzz"})
    assert status == 404
    message = answer["error"]["message"]
    assert message.startswith("there is no model 'zzz'; Models on this machine: ")
    assert set(message.partition("machine: ")[2].split(", ")) == {"small", "tiny-random", "glyph-128"}


async def test_lists_begin_with_the_default(running: RunningApp, small: dict[str, Any]) -> None:
    """Clients take the first, or put all into a menu; the page asks for the catalog."""
    async with running(**small) as app, openai.AsyncOpenAI(base_url=f"{app.url}/v1", api_key="x") as client:
        listed = [model.id async for model in client.models.list()]
        assert listed[0] == "small"
        assert sorted(listed) == ["glyph-128", "small", "tiny-random"]
        for path in ("/v1/models", "/v3/models", "/v1-openai/models"):
            assert [each["id"] for each in (await app.get(path))[1]["data"]] == listed
            every = [each["id"] for each in (await app.get(f"{path}?all=true"))[1]["data"]]
            assert every[0] == "small"
            assert "sdxl-base" in every or len(every) > 20
        _, models = await app.get("/sdapi/v1/sd-models")
        assert models[0]["model_name"] == "small"
        assert len(models) == 3
        _, every = await app.get("/sdapi/v1/sd-models?all=true")
        assert every[0] == models[0]
        assert len(every) > 20


# -- errors -------------------------------------------------------------------------------------------


async def test_the_reason_phrase(running: RunningApp, small: dict[str, Any]) -> None:
    """The sentence stands in the status line, whatever a request has put into it."""
    async with running(**small) as app:
        for model, words in (
            ("zzz", "there is no model 'zzz'; Models on this machine: "),
            ("a\r\nX-Evil: 1\tb\u2028ü", "there is no model "),
            ("y" * 5000, "there is no model 'yyy"),
        ):
            async with app.session.post(app.url + GENERATIONS, json={**SMALL, "model": model}) as answer:
                assert answer.status == 404
                assert answer.reason is not None
                assert answer.reason.startswith(words)
                assert len(answer.reason) <= 200
                assert all(" " <= letter <= "~" for letter in answer.reason)
                assert "X-Evil" not in answer.headers
        async with app.session.post(app.url + "/sdcpp/v1/img_gen", json={"width": "x"}) as answer:
            assert answer.reason == "width: must be a whole number"


async def test_detail_is_a_list_for_fields_of_a_wrong_type(
    running: RunningApp, small: dict[str, Any]
) -> None:
    """vLLM's clients read `{loc, msg, type}`; anything else is one sentence, as webuiapi prints it."""
    async with running(**small) as app:
        status, answer = await app.post(GENERATIONS)
        missing = {"loc": ["body", "prompt"], "msg": "Field required", "type": "missing"}
        assert (status, answer["detail"]) == (400, [missing])
        status, answer = await app.post(GENERATIONS, prompt="a cat", n="many", hires={"steps": "x"})
        assert status == 400
        assert [fault["loc"] for fault in answer["detail"]] == [["body", "n"], ["body", "hires", "steps"]]
        assert answer["detail"][0]["type"] == "int_parsing"
        assert answer["error"]["message"].startswith("n: ")
        _, answer = await app.post("/sdapi/v1/txt2img", prompt=7)
        assert answer["detail"][0]["loc"] == ["body", "prompt"]
        for body in ({"n": 11}, {"size": "huge"}, {"sampler": "best"}):
            _, answer = await app.post(GENERATIONS, prompt="a cat", **body)
            assert answer["detail"] == answer["error"]["message"]


async def test_what_a_model_cannot_is_left_out(running: RunningApp, small: dict[str, Any]) -> None:
    """Transparent backgrounds, foreign schedules and one step of karras: a picture and a warning."""
    async with running(**small) as app:
        for said in ({"background": "transparent"}, {"schedule": "ays"}, {"schedule": "karras", "steps": 1}):
            status, answer = await app.post(GENERATIONS, **{**SMALL, **said})
            assert (status, answer["background"], len(answer["warnings"])) == (200, "opaque", 1)
        status, answer = await app.post(GENERATIONS, **SMALL, response_format="base64")
        assert (status, answer["data"][0]["url"]) == (200, None)


# -- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["/v1/v1", "", "/v3", "/v3/v3", "/v1-openai"])
async def test_base_addresses_as_people_type_them(
    running: RunningApp, small: dict[str, Any], base: str
) -> None:
    """openai-python with a base address too long or too short."""
    async with running(**small) as app, openai.AsyncOpenAI(base_url=app.url + base, api_key="x") as client:
        made = await client.images.generate(prompt="a cat", size="256x256")
        assert made.data
        assert (await client.models.list()).data[0].id == "small"


async def test_a_slash_at_the_end(running: RunningApp, small: dict[str, Any]) -> None:
    """Served on every route, with a key no more open than without it; of a base address, too, which doubles
    it: Open WebUI puts paths that begin with one behind it.
    """
    async with running(**small) as app:
        assert (await app.get("//sdapi/v1/options"))[1]["sd_model_checkpoint"] == "small"
        assert (await app.post("/v1//images/generations", **SMALL))[0] == 200
        assert (await app.post(f"{GENERATIONS}/", **SMALL))[0] == 200
        assert (await app.post("/sdapi/v1/txt2img/", prompt="a cat", steps=1))[0] == 200
        assert (await app.get("/v1/models/"))[1]["data"]
    async with running(**small, api_key=("secret",)) as app:
        for path in ("/livez", "/livez/", "/health/"):
            assert (await app.get(path))[0] != 401
        for path in ("/v1/models/", "/v1/v1/models", "/models", "/metrics/", "//v1//models", "//metrics"):
            assert (await app.get(path))[0] == 401


async def test_azures_client(running: RunningApp, small: dict[str, Any]) -> None:
    """openai-python's AzureOpenAI: the deployment is the model, the key a header of its own."""
    async with (
        running(**small, api_key=("secret",)) as app,
        openai.AsyncAzureOpenAI(
            azure_endpoint=app.url, api_key="secret", api_version="2025-04-01-preview"
        ) as client,
    ):
        made = await client.images.generate(model="small", prompt="a cat", size="1024x1024")
        assert made.data
        assert picture(made.data[0].b64_json).size == (1024, 1024)
        made = await client.images.edit(model="small", prompt="a hat", image=png(noise(128, 128)))
        assert made.data
        said = await client.chat.completions.create(
            model="dall-e-3", messages=[{"role": "user", "content": "a cat"}]
        )
        assert said.model == "small"


async def test_a_path_that_is_none_names_the_right_one(running: RunningApp, small: dict[str, Any]) -> None:
    """A base address with /v1 for AUTOMATIC1111, and what is only misspelt."""
    async with running(**small) as app:
        for path, right in (
            ("/v1/sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
            ("/sdapi/v1/sdapi/v1/txt2img", "/sdapi/v1/txt2img"),
            ("/v1/image/generations", "/v1/images/generations"),
        ):
            status, answer = await app.post(path, prompt="a cat")
            assert (status, answer["error"]["code"]) == (404, "not_found")
            assert answer["error"]["message"] == f"there is no POST {path}; did you mean {right}?"
        _, answer = await app.get("/nothing/like/it")
        assert answer["error"]["message"].endswith("; GET /docs lists every route")


async def test_controlnet_and_loading_by_body(running: RunningApp, small: dict[str, Any]) -> None:
    """What extensions' clients ask first, and a load with the model in the body."""
    async with running(**small) as app:
        assert (await app.get("/controlnet/model_list"))[1] == {"model_list": []}
        assert (await app.get("/controlnet/module_list"))[1]["module_list"] == ["none", "canny"]
        assert (await app.get("/controlnet/version"))[0] == 200
        assert (await app.post("/v1/models", model="small"))[0] == 200
        assert (await app.post("/v1/models", model="dall-e-3"))[0] == 404
        assert (await app.post("/v1/models"))[0] == 400
