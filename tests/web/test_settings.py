"""Settings that leave the page and come back: copies that make the same picture, pictures loaded again."""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Page, expect

from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.pictures import infotext
from tests.api.client import noise, picture, png
from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import QuickEngine
from tests.web.conftest import (
    MS,
    OpenPage,
    asks,
    generate,
    newest_job,
    ready,
    send,
    settled,
    unfold,
    weigh,
)
from tests.web.test_edit import newest, upload
from tests.weights import write_upscaler

TOLD = {
    "Distilled CFG Scale": 2.5, "Clip skip": 2, "Shift": 3, "Eta": 0.5, "Step cache": "spectrum",
    "Step cache threshold": 0.2, "Decoder": "tiny", "LoRA": "gone: 0.5, fog: -1",
    "Variation seed": 4, "Variation seed strength": 0.3,
    "Postprocess upscale by": 3, "Postprocess upscaler": "double",
    "Hires resize": "128x96", "Hires steps": 3, "Hires upscaler": "latent_nearest",
    "Hires denoising strength": 0.6,
}  # fmt: skip


async def copied(page: Page, what: str) -> str:
    """What this button of the viewer puts into the clipboard."""
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.evaluate("navigator.clipboard.writeText('')")
    await page.get_by_role("button", name=f"Copy {what}").click()
    await page.wait_for_function("async () => await navigator.clipboard.readText() !== ''")
    return str(await page.evaluate("navigator.clipboard.readText()"))


def run(command: str, folder: Path) -> Image.Image:
    """The picture of a copied command, run as it is but for one field that asks for it whole."""
    command = command.replace('"stream":true', '"response_format":"b64_json"')
    command = command.replace("stream=true", "response_format=b64_json")
    answer = subprocess.run(
        shlex.split(command), cwd=folder, check=True, capture_output=True, timeout=MS / 1000
    )
    return picture(json.loads(answer.stdout)["data"][0]["b64_json"])


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and bool((np.asarray(one) == np.asarray(other)).all())


async def load_settings(page: Page) -> None:
    """Of the picture in the viewer: cards of jobs that failed have such a button, too."""
    await page.locator("#viewer").get_by_role("button", name="Load settings").click()


async def open_newest(page: Page) -> None:
    await newest_job(page).locator(".tile").first.click()
    await expect(page.locator("#viewer-parameters")).to_contain_text("Version")


async def test_copies_make_the_same_picture(studio: ServerProcess, visit: OpenPage, tmp_path: Path) -> None:
    """As JSON and as a command, with step cache, LoRA and enlarging; so does the form with them."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.select_option("#model", "by-reference")
        await unfold(page)
        await weigh(page, "watercolour", 0.5)
        await page.select_option("#upscale", "2 double")
        await page.select_option("#step_cache", "spectrum")
        await generate(page, "it's a 'cat'; @home", width=64, height=64, steps=3, seed=7)
        made = await newest(page, studio)
        assert made.size == (128, 128)
        await open_newest(page)
        body = json.loads(await copied(page, "JSON"))
        assert body["lora"] == [{"name": "watercolour", "scale": 0.5}]
        answer = await page.request.post(
            f"{studio.url}/v1/images/generations", data={**body, "response_format": "b64_json"}
        )
        assert same(picture((await answer.json())["data"][0]["b64_json"]), made)
        assert same(run(await copied(page, "curl"), tmp_path), made)
        await page.keyboard.press("Escape")
        await page.select_option("#model", "glyph-128")
        await page.get_by_role("button", name="Remove watercolour").click()
        await page.select_option("#upscale", "")
        await newest_job(page).locator(".tile").first.click()
        await load_settings(page)
        await expect(page.locator("#prompt")).to_have_value("it's a 'cat'; @home")
        await expect(page.locator("#width")).to_have_value("64")
        await send(page)
        assert same(await newest(page, studio), made)


async def test_the_command_of_an_edit_is_an_edit(
    studio: ServerProcess, visit: OpenPage, tmp_path: Path
) -> None:
    """With names to replace, which are said; it makes the same picture, whatever its prompt begins with."""
    (tmp_path / "PICTURE.png").write_bytes(png(noise()))
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    mask.save(tmp_path / "MASK.png")
    async with visit(studio.url) as page:
        await ready(page)
        await page.set_input_files("#file", upload("noise.png", png(noise())))
        await page.get_by_role("button", name="Paint a mask…").click()
        await expect(page.locator("#mask")).to_be_visible()
        box = await page.locator("#mask-paint").bounding_box()
        assert box is not None
        await page.locator("#brush").fill("200")
        await page.mouse.click(box["x"] + 50, box["y"] + 50)
        await page.get_by_role("button", name="Use this mask").click()
        painted = str(await page.get_by_alt_text("Its mask").get_attribute("src"))
        picture(painted.partition(",")[2]).save(tmp_path / "MASK.png")
        await page.locator("#strength").fill("0.3")
        await generate(page, "@home; a <b>cat</b>", steps=4, seed=5)
        made = await newest(page, studio)
        job = await newest_job(page).get_attribute("data-job")
        await open_newest(page)
        command = await copied(page, "curl")
        await expect(page.locator("#toasts")).to_contain_text("in the place of PICTURE.png, MASK.png")
        assert "-F 'image[]=@PICTURE.png' -F 'mask=@MASK.png'" in command
        assert same(run(command, tmp_path), made)
        body = json.loads(await copied(page, "JSON"))
        assert (body["image"], body["mask"], body["strength"]) == (["PICTURE.png"], "MASK.png", 0.3)
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Remove picture 1").click()
        await page.locator(f".job[data-job='{job}'] .tile").first.click()  # the newest is the command's
        await load_settings(page)
        await expect(page.get_by_alt_text("Its mask")).to_be_visible()
        await expect(page.locator("#strength")).to_have_value("0.3")
        await send(page)
        assert same(await newest(page, studio), made)


async def test_settings_of_words_alone_take_the_picture_out(studio: ServerProcess, visit: OpenPage) -> None:
    """What is generated then is no edit; the picture can be put back, and Vary starts from the new one."""
    async with visit(studio.url) as page:
        await generate(page, "a red circle", steps=2, seed=3)
        await settled(page)
        await page.set_input_files("#file", upload("noise.png", png(noise())))
        before = str(await page.get_by_alt_text("Picture 1", exact=True).get_attribute("src"))
        await newest_job(page).locator(".tile").first.click()
        await load_settings(page)
        await expect(page.locator(".thumb")).to_have_count(0)
        await expect(page.locator("#toasts")).to_contain_text("was removed")
        async with page.expect_request(asks):
            await send(page)
        await settled(page)
        await page.get_by_role("button", name="Put it back").click()
        await expect(page.get_by_alt_text("Picture 1", exact=True)).to_have_attribute("src", before)
        await newest_job(page).locator(".tile").first.click()
        await page.get_by_role("button", name="Vary").click()
        await page.locator("#picker-list button", has_text="Start from it").click()
        await expect(page.get_by_alt_text("Picture 1", exact=True)).not_to_have_attribute("src", before)
        await expect(page.locator("#prompt")).to_be_focused()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A folder with a picture that tells of everything, and a newer one that tells of little."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    plain: dict[str, Any] = {
        "steps": 4, "sampler": "euler", "schedule": "discrete", "cfg_scale": 2.5, "seed": 9,
        "width": 64, "height": 64, "model": "tiny-random", "version": "a test",
    }  # fmt: skip
    for day, prompt, extra in ((1, "full", TOLD), (2, "bare", {})):
        text = infotext.text_of(infotext.settings_of(prompt=prompt, extra=extra, **plain))
        name = f"2026010{day}-000000-{secrets.token_urlsafe(18)}.png"
        Image.new("RGB", (64, 64)).save(folder / name, pnginfo=infotext.png_text(text))
    return folder


async def test_everything_that_a_picture_tells(
    running: RunningApp, visit: OpenPage, shelf: Path, tmp_path: Path
) -> None:
    """Is in the request; what it does not tell is as the model has it, and what is not here is said."""
    upscalers = tmp_path / "upscalers"
    upscalers.mkdir()
    write_upscaler(upscalers / "double.gguf", 2)
    async with (
        running(engine=QuickEngine, output_dir=shelf, upscaler_dir=upscalers) as app,
        visit(app.url, "#/gallery") as page,
    ):
        await page.get_by_role("button", name="Open: full").click()
        body = json.loads(await copied(page, "JSON"))
        assert body.items() >= {
            "variation_seed": 4, "variation_strength": 0.3,
            "guidance": 2.5, "clip_skip": 2, "flow_shift": 3, "eta": 0.5, "step_cache": "spectrum",
            "step_cache_threshold": 0.2, "decoder": "tiny", "upscale": 3, "upscaler": "double",
        }.items()  # fmt: skip
        assert body["lora"] == [{"name": "gone", "scale": 0.5}, {"name": "fog", "scale": -1}]
        assert "image" not in body
        await load_settings(page)
        await expect(page.locator("#prompt")).to_be_focused()
        await expect(page.locator("#toasts")).to_contain_text("left out: gone, fog")
        values = {
            "step_cache": "spectrum", "guidance": "2.5", "upscale": "3 double", "seed": "9",
            "clip_skip": "2", "eta": "0.5", "flow_shift": "3",
            "variation_seed": "4", "variation_strength": "0.3",
            "hires_width": "128", "hires_height": "96", "hires_steps": "3", "hires_strength": "0.6",
            "hires_upscaler": "latent_nearest",
        }  # fmt: skip
        assert {name: await page.input_value(f"#{name}") for name in values} == values
        await page.get_by_role("link", name="Gallery").click()
        await page.get_by_role("button", name="Open: bare").click()
        await load_settings(page)
        await expect(page.locator("#prompt")).to_have_value("bare")
        values = {
            "step_cache": "none", "guidance": "3.5", "upscale": "", "steps": "4",
            "clip_skip": "", "eta": "", "flow_shift": "", "hires_width": "", "variation_seed": "",
            "variation_strength": "0",
        }  # fmt: skip
        assert {name: await page.input_value(f"#{name}") for name in values} == values


async def test_each_quantisation_on_disk_is_offered(
    running: RunningApp, visit: OpenPage, tmp_path: Path
) -> None:
    """By its name, and a request asks for the chosen one; its picture brings it back."""
    models = tmp_path / "models"
    models.mkdir()
    write_test_model(models)
    entry = {
        "family": "ovis-image",
        "capabilities": ["text-to-image"],
        "files": {"taesd": "tiny-random-tae.gguf"},
        "quants": {"q8": {"file": "tiny-random.gguf"}, "q4": {"file": "tiny-random.gguf"}},
    }
    catalog = models / "two.yaml"
    catalog.write_text(json.dumps({"version": 1, "models": {"two": entry}}))
    async with (
        running(engine=QuickEngine, models_dir=models, catalog=catalog) as app,
        visit(app.url) as page,
    ):
        await ready(page)
        options = page.locator("#model option")
        assert {"two:q8", "two:q4"} <= {await each.get_attribute("value") for each in await options.all()}
        await page.select_option("#model", "two:q4")
        async with page.expect_request(asks) as sent:
            await generate(page, "a cat", steps=2)
        assert json.loads((await sent.value).post_data or "")["model"] == "two:q4"
        await settled(page)
        await page.reload()
        await ready(page)
        await expect(page.locator("#model")).to_have_value("two:q4")
        await page.select_option("#model", "tiny-random")
        await newest_job(page).locator(".tile").first.click()
        await load_settings(page)
        await expect(page.locator("#model")).to_have_value("two:q4")
