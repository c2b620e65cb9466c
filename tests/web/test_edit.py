"""Pictures to start from: dropped, picked, taken from a result; masks by mouse and by keyboard."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.async_api import Page, expect

from gguf_imagegen.pictures import infotext
from tests.api.client import noise, picture, png
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import QuickEngine
from tests.web.conftest import (
    OpenPage,
    asks,
    check_accessible,
    generate,
    newest_job,
    ready,
    send,
    settled,
)

PAINTED = """(canvas) => canvas.getContext("2d").getImageData(0, 0, 128, 128).data
  .filter((value, index) => index % 4 === 3 && value > 127).length"""
Pixels = npt.NDArray[np.int16]
A1111 = (
    "a castle, (evening:1.2)\nNegative prompt: fog\nSteps: 7, Sampler: DPM++ 2M Karras, CFG scale: 4.5, "
    "Seed: 1234, Size: 96x128, Model hash: 6ce0161689, Model: someone-elses-model, Version: v1.10.1"
)


def pixels(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), np.int16)


def upload(name: str, data: bytes) -> Any:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def with_parameters(text: str) -> bytes:
    file = io.BytesIO()
    noise(96, 96).save(file, "PNG", pnginfo=infotext.png_text(text))
    return file.getvalue()


async def drop(page: Page, data: bytes) -> None:
    """Drop a file on the page, as a desktop does."""
    await page.evaluate(
        """(text) => {
            const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
            for (const type of ["dragover", "drop"]) {
              const options = {bubbles: true, cancelable: true, dataTransfer: transfer};
              document.body.dispatchEvent(new DragEvent(type, options));
            }
        }""",
        base64.b64encode(data).decode(),
    )


async def newest(page: Page, server: ServerProcess | App) -> Image.Image:
    """The newest card's picture as the server has it."""
    await settled(page)
    done = newest_job(page).locator(".picture[data-state=done] img").first
    answer = await page.request.get(server.url + str(await done.get_attribute("src")).partition("?")[0])
    return picture(await answer.body())


async def test_only_the_mask_changes(studio: ServerProcess, visit: OpenPage) -> None:
    """A mask painted with the mouse: pixels outside are the very same, those inside are new."""
    original = noise()
    async with visit(studio.url) as page:
        await ready(page)
        await page.set_input_files("#file", upload("noise.png", png(original)))
        await page.get_by_role("button", name="Paint a mask…").click()
        await expect(page.locator("#mask")).to_be_visible()
        box = await page.locator("#mask-paint").bounding_box()
        assert box is not None
        left, top = box["x"] + box["width"] / 4, box["y"] + box["height"] / 4
        await page.mouse.move(left, top)
        await page.mouse.down()
        await page.mouse.move(left + box["width"] / 4, top, steps=5)
        await page.mouse.up()
        await check_accessible(page)
        await page.get_by_role("button", name="Use this mask").click()
        await expect(page.get_by_alt_text("Its mask")).to_be_visible()
        await expect(page.get_by_role("button", name="Change the mask…")).to_be_visible()
        await generate(page, "a red circle", steps=4)
        changed = np.abs(pixels(await newest(page, studio)) - pixels(original)).max(axis=2)
        assert changed.shape == (128, 128)
        # the stroke: from (32, 32) to (64, 32), 60 of 800 wide, that is 10 pixels of 128
        inside = changed[29:35, 32:64]
        outside = changed.copy()
        outside[24:41, 24:72] = 0
        assert outside.max() == 0
        assert (inside > 8).mean() > 0.5
        await newest_job(page).locator(".tile").press("Enter")
        await expect(page.locator("#viewer").get_by_role("button", name="Close")).to_be_focused()
        await page.keyboard.press("Delete")
        await page.locator("#ask").get_by_role("button", name="Keep").click()
        slider = page.get_by_label("Where “Before” ends")
        await slider.press("End")
        clip = await page.locator(".pair img").nth(1).evaluate("(image) => image.style.clipPath")
        assert clip.replace("px", "") == "inset(0 0 0 100%)"
        await check_accessible(page)


async def test_a_mask_by_keyboard(studio: ServerProcess, visit: OpenPage) -> None:
    """Space paints, Shift and an arrow draw, Ctrl+Z and Redo, Invert turns over, Escape changes nothing."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.set_input_files("#file", upload("noise.png", png(noise())))
        await page.get_by_role("button", name="Paint a mask…").press("Enter")
        canvas = page.locator("#mask-paint")
        await expect(page.locator("#mask-area")).to_be_focused()
        await page.keyboard.press("Space")
        dot = await canvas.evaluate(PAINTED)
        assert 40 < dot < 120
        await page.keyboard.down("Shift")
        for _ in range(6):
            await page.keyboard.press("ArrowRight")
        await page.keyboard.up("Shift")
        line = await canvas.evaluate(PAINTED)
        assert line > dot + 60
        await expect(page.locator("#mask-said")).to_contain_text("Painted at")
        redo = page.locator("#mask").get_by_role("button", name="Redo")
        await expect(redo).to_be_disabled()
        await page.keyboard.press("Control+z")
        assert await canvas.evaluate(PAINTED) == dot
        await page.keyboard.press("Control+Shift+z")
        assert await canvas.evaluate(PAINTED) == line
        await page.keyboard.press("Control+z")
        await redo.press("Enter")
        assert await canvas.evaluate(PAINTED) == line
        await expect(page.locator("#mask-area")).to_be_focused()  # as Redo has nothing to do
        await page.keyboard.press("Control+z")
        await page.get_by_role("button", name="Invert").press("Enter")
        assert abs(await canvas.evaluate(PAINTED) - (128 * 128 - dot)) <= 40
        await page.get_by_role("button", name="Undo").press("Enter")
        await page.get_by_role("button", name="Erase").press("Enter")
        await page.focus("#mask-area")
        for _ in range(6):
            await page.keyboard.press("ArrowLeft")
        await page.keyboard.press("Space")
        assert await canvas.evaluate(PAINTED) < dot
        await page.locator("#zoom").fill("3")
        for _ in range(2):
            await page.keyboard.press("Escape")
            await expect(page.locator("#ask")).to_contain_text("Discard your changes?")
            await page.keyboard.press("Escape")
            await expect(page.locator("#ask")).to_be_hidden()
        await expect(page.locator("#mask")).to_be_visible()
        await page.keyboard.press("Escape")
        await page.locator("#ask").get_by_role("button", name="Discard").click()
        await expect(page.locator("#mask")).to_be_hidden()
        await expect(page.get_by_role("button", name="Paint a mask…")).to_be_visible()


async def test_two_fingers_move_a_zoomed_picture(studio: ServerProcess, visit: OpenPage) -> None:
    """They paint nothing, as the middle button does; one finger paints."""
    where = "() => ['scrollLeft', 'scrollTop'].map((each) => document.querySelector('#mask-area')[each])"
    async with visit(studio.url, has_touch=True, viewport={"width": 360, "height": 740}) as page:
        await ready(page)
        await page.set_input_files("#file", upload("noise.png", png(noise())))
        await page.get_by_role("button", name="Paint a mask…").click()
        await page.locator("#zoom").fill("4")
        canvas, box = page.locator("#mask-paint"), await page.locator("#mask-area").bounding_box()
        assert box is not None
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = await page.context.new_cdp_session(page)

        async def fingers(kind: str, *at: tuple[float, float]) -> None:
            points = [{"x": left, "y": top, "id": number} for number, (left, top) in enumerate(at)]
            await touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        left, top = await page.evaluate(where)
        await fingers("touchStart", (x - 40, y), (x + 40, y))
        for step in (20, 40, 60):
            await fingers("touchMove", (x - 40 - step, y - step), (x + 40 - step, y - step))
        await fingers("touchEnd")
        await page.wait_for_function(
            "([left, top]) => document.querySelector('#mask-area').scrollLeft > left + 20"
            " && document.querySelector('#mask-area').scrollTop > top + 20",
            arg=[left, top],
        )
        assert await canvas.evaluate(PAINTED) == 0
        moved = await page.evaluate(where)
        await page.mouse.move(x, y)
        await page.mouse.down(button="middle")
        await page.mouse.move(x + 30, y + 30, steps=3)
        await page.mouse.up(button="middle")
        assert await page.evaluate(where) == [moved[0] - 30, moved[1] - 30]
        assert await canvas.evaluate(PAINTED) == 0
        await fingers("touchStart", (x, y))
        await fingers("touchMove", (x + 30, y))
        await fingers("touchEnd")
        await page.wait_for_function(
            "() => [...document.querySelector('#mask-paint').getContext('2d')"
            ".getImageData(0, 0, 128, 128).data].some(Boolean)"
        )


async def test_a_dropped_picture_brings_its_settings(studio: ServerProcess, visit: OpenPage) -> None:
    """One of ours and one of AUTOMATIC1111's: as a picture, or for what made it."""
    async with visit(studio.url) as page:
        await ready(page)
        await drop(page, with_parameters(A1111))
        await expect(page.locator("#offer")).to_contain_text("contains its settings")
        await expect(page.locator(".thumb")).to_have_count(1)
        await expect(page.locator("#width")).to_have_value("96")
        await page.get_by_role("button", name="Load its settings").click()
        await expect(page.locator("#prompt")).to_have_value("a castle, (evening:1.2)")
        values = {
            "negative": "fog",
            "steps": "7",
            "cfg": "4.5",
            "seed": "1234",
            "width": "96",
            "height": "128",
        }
        assert {name: await page.input_value(f"#{name}") for name in values} == values
        assert await page.input_value("#sampler") == "dpm++2m"
        assert await page.input_value("#schedule") == "karras"
        await expect(page.locator("#toasts")).to_contain_text("someone-elses-model, is not here")
        await expect(page.locator(".thumb")).to_have_count(0)
        await expect(page.locator("#prompt")).to_be_focused()
        await send(page)
        made = await newest(page, studio)
        assert made.size == (96, 128)
        await page.fill("#prompt", "other words")
        file = io.BytesIO()
        made.save(file, "PNG", pnginfo=infotext.png_text(str(made.info["parameters"])))
        await drop(page, file.getvalue())
        await page.get_by_role("button", name="Load its settings").click()
        await expect(page.locator("#prompt")).to_have_value("a castle, (evening:1.2)")


async def test_a_pasted_picture(studio: ServerProcess, visit: OpenPage) -> None:
    """Wherever the focus is; text goes where it would."""
    paste = """([text, kind]) => {
        const transfer = new DataTransfer();
        const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
        if (kind) transfer.items.add(new File([bytes], "pasted.png", {type: kind}));
        else transfer.setData("text/plain", "words");
        const options = {bubbles: true, cancelable: true, clipboardData: transfer};
        return document.querySelector("#prompt").dispatchEvent(new ClipboardEvent("paste", options));
    }"""
    async with visit(studio.url, "#/gallery") as page:
        await expect(page.locator("#model option")).not_to_have_count(0)
        data = base64.b64encode(png(noise(96, 64))).decode()
        assert await page.evaluate(paste, [data, ""])
        assert not await page.evaluate(paste, [data, "image/png"])
        await expect(page.locator("#view-create")).to_be_visible()
        await expect(page.locator(".thumb")).to_have_count(1)
        assert (await page.input_value("#width"), await page.input_value("#height")) == ("96", "64")
        await expect(page.get_by_role("button", name="As the picture")).to_have_attribute(
            "aria-pressed", "true"
        )


async def test_what_is_no_picture(studio: ServerProcess, visit: OpenPage) -> None:
    """Is refused in words, and the form stays as it was."""
    async with visit(studio.url, statuses=(400,)) as page:
        await ready(page)
        text = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"x"}
        await page.set_input_files("#file", text)  # type: ignore[arg-type]
        await expect(page.locator("#toasts")).to_contain_text("notes.txt is not a picture")
        await page.set_input_files("#file", upload("broken.png", b"\x89PNG\r\n\x1a\nbroken"))
        await expect(page.locator("#toasts")).to_contain_text("cannot show this picture")
        await expect(page.locator(".toast")).to_have_count(2)
        await expect(page.locator(".thumb")).to_have_count(0)
        await page.set_input_files("#file", upload("noise.png", png(noise())))
        await expect(page.locator(".thumb")).to_have_count(1)
        await expect(page.locator(".toast")).to_have_count(2)


async def test_a_picture_beyond_the_servers_pixels(running: RunningApp, visit: OpenPage) -> None:
    """Is refused when it is chosen, with its figure and the server's."""
    async with running(engine=QuickEngine, max_input_pixels=1_000_000) as app, visit(app.url) as page:
        await ready(page)
        await page.set_input_files("#file", upload("large.png", png(noise(1600, 1500))))
        await expect(page.locator("#toasts")).to_contain_text(
            "This picture has 2.4 megapixels; this server takes 1.0 megapixels."
        )
        await expect(page.locator(".thumb")).to_have_count(0)


async def test_a_dropped_picture_gives_the_old_one_back(studio: ServerProcess, visit: OpenPage) -> None:
    """One dropped only for its settings: what was there before, with its mask, can be had again."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.set_input_files("#file", upload("noise.png", png(noise())))
        await page.get_by_role("button", name="Paint a mask…").click()
        await page.get_by_role("button", name="Invert").click()
        await page.get_by_role("button", name="Use this mask").click()
        first = page.get_by_alt_text("Picture 1", exact=True)
        before = str(await first.get_attribute("src"))
        await drop(page, with_parameters(A1111.replace("Version", "Denoising strength: 0.4, Version")))
        await page.get_by_role("button", name="Load its settings").click()
        await expect(page.locator("#strength")).to_have_value("0.4")
        await expect(first).to_have_attribute("src", before)
        await expect(page.get_by_alt_text("Its mask")).to_be_visible()
        await drop(page, with_parameters(A1111))
        await page.get_by_role("button", name="Load its settings").click()
        await expect(page.locator(".thumb")).to_have_count(0)
        await page.get_by_role("button", name="Put it back").click()
        await expect(first).to_have_attribute("src", before)
        await expect(page.get_by_alt_text("Its mask")).to_be_visible()
        await drop(page, with_parameters(A1111))
        await page.get_by_role("button", name="Just the picture").click()
        await expect(first).not_to_have_attribute("src", before)
        await expect(page.locator("#prompt")).to_be_focused()


async def test_use_as_input_and_vary(studio: ServerProcess, visit: OpenPage) -> None:
    """A result becomes an input, with or without its settings; the picture outlives a reload."""
    async with visit(studio.url, viewport={"width": 360, "height": 740}) as page:
        await generate(page, "a lovely cat", steps=4, seed=5)
        await settled(page)
        await newest_job(page).locator(".tile").first.click()
        await page.get_by_role("button", name="Use as input").click()
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(page.locator(".thumb")).to_have_count(1)
        await expect(page.locator("#inputs-field")).to_be_focused()
        await expect(page.locator("#inputs-field")).to_be_in_viewport()
        await page.locator("#strength").fill("0.4")
        await page.fill("#prompt", "a dog")
        await page.reload()
        await expect(page.locator(".thumb")).to_have_count(1)
        await expect(newest_job(page)).to_be_visible()
        async with page.expect_request(asks) as sent:
            await send(page)
        body = json.loads((await sent.value).post_data or "")
        assert (body["strength"], body["seed"], len(body["image"])) == (0.4, 5, 1)
        await settled(page)
        await newest_job(page).locator(".tile").first.click()
        await page.get_by_role("button", name="Vary").click()
        await page.locator("#picker-list button", has_text="Start from it").click()
        await expect(page.locator("#prompt")).to_have_value("a dog")
        await expect(page.locator("#lock")).to_have_attribute("aria-pressed", "false")
        await page.get_by_role("button", name="Remove picture 1").click()
        await expect(page.locator(".thumb")).to_have_count(0)
        await newest_job(page).locator(".tile").first.click()
        await page.get_by_role("button", name="Vary").click()
        await page.locator("#picker-list button", has_text="Small changes").click()
        await expect(page.locator(".thumb")).to_have_count(1)
        async with page.expect_request(asks) as sent:
            await send(page)
        body = json.loads((await sent.value).post_data or "")
        assert (body["seed"], body["variation_strength"], "variation_seed" in body) == (5, 0.2, False)
        await settled(page)


async def test_several_references(studio: ServerProcess, visit: OpenPage) -> None:
    """A model of three references takes three; another says that it uses one."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.select_option("#model", "by-reference")
        files = [upload(f"{size}.png", png(noise(size, size))) for size in (64, 80, 96, 112)]
        await page.set_input_files("#file", files)
        await expect(page.locator("#toasts")).to_contain_text("takes 3 pictures. Left out: 112.png.")
        await expect(page.locator(".thumb")).to_have_count(3)
        sizes = "(images) => images.map((image) => image.naturalWidth)"
        assert await page.locator(".thumb img").evaluate_all(sizes) == [64, 80, 96]
        await expect(page.locator("#strength-field")).to_be_hidden()
        async with page.expect_request(asks) as sent:
            await generate(page, "combine them", steps=1)
        assert len(json.loads((await sent.value).post_data or "")["image"]) == 3
        await settled(page)
        await expect(newest_job(page)).to_have_attribute("data-status", "succeeded")
        await page.select_option("#model", "glyph-128")
        await expect(page.locator("#inputs-hint")).to_contain_text(
            "takes 1 picture: the pale ones are not used"
        )
        await expect(page.locator(".thumb.unused")).to_have_count(2)


async def test_a_picture_is_sent_on(studio: ServerProcess, visit: OpenPage) -> None:
    """To a mask, or to a larger canvas, whose border alone the engine draws; the old pixels stay."""
    async with visit(studio.url) as page:
        await generate(page, "a red apple", steps=2)
        original = pixels(await newest(page, studio))
        await newest_job(page).locator(".tile").click()
        await page.get_by_role("button", name="Send to…").click()
        places = page.locator("#picker-list button")
        await expect(places.locator("span")).to_have_text(["Inpaint", "Extend"])
        await check_accessible(page)
        await places.filter(has_text="Inpaint").click()
        await expect(page.locator("#mask-area")).to_be_focused()
        await page.keyboard.press("Escape")
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(page.locator(".thumb")).to_have_count(1)
        await newest_job(page).locator(".tile").click()
        await page.get_by_role("button", name="Send to…").click()
        await expect(page.locator("#picker-find")).to_be_hidden()
        await expect(places.first).to_be_focused()
        await places.last.press("Enter")
        await page.fill("#extend-right", "64")
        await page.click("#extend-done")
        await expect(page.get_by_alt_text("Its mask")).to_be_visible()
        await generate(page, "a red apple", steps=2)
        made = pixels(await newest(page, studio))
        assert made.shape == (128, 192, 3)
        assert (made[:, :128] == original).all()
        drawn_out = np.repeat(original[:, -1:], 64, axis=1)
        assert np.abs(made[:, 128:] - drawn_out).max() > 8
