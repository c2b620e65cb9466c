"""The form: help, presets, LoRAs, what a picture costs, sets, the queue, and larger canvases."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest_asyncio
from playwright.async_api import Page, Route, expect

from tests.api.client import noise, png
from tests.api.recipes import write_catalog
from tests.conftest import RunningApp
from tests.fake_engines import NeverAnswers, QuickEngine
from tests.modelfiles.test_lora_card import lora
from tests.web.conftest import (
    OpenPage,
    asks,
    check_accessible,
    fits_across,
    generate,
    ready,
    settled,
    weigh,
)
from tests.web.test_edit import newest, pixels, upload
from tests.weights import write_lora

PHONE = {"width": 360, "height": 740}
WITHOUT_HELP = """async () => {
  const {HELP} = await import("./web/help_texts.js");
  const names = [...document.querySelectorAll(".help")].map((mark) => mark.dataset.about);
  return names.filter((name) => !HELP[name]);
}"""
SMALL_TARGETS = """(marks) => marks.filter((mark) => mark.checkVisibility())
  .map((mark) => mark.getBoundingClientRect())
  .filter(({width, height}) => width < 44 || height < 44).length"""


@pytest_asyncio.fixture
async def address(running: RunningApp, tmp_path: Path) -> AsyncIterator[str]:
    """Of a server of a quick engine, with two LoRAs, of which the second fits another model."""
    lora(tmp_path / "inkwash.safetensors", {"modelspec.trigger_phrase": "TOK, in ink"})
    write_lora(tmp_path / "grain.gguf", target="x")
    async with running(engine=QuickEngine, lora_dir=tmp_path, catalog=write_catalog(tmp_path)) as app:
        yield app.url


async def test_each_setting_has_help(address: str, visit: OpenPage) -> None:
    """One sentence on its "?", by keyboard, large enough for a finger, and away again."""
    async with visit(address, viewport=PHONE) as page:
        await ready(page)
        await page.click("#lora-add")
        await page.keyboard.press("Escape")
        settings = page.locator("#create :is(.setting, fieldset[data-help])")
        assert await settings.count() == await page.locator("#create .help").count() > 25
        assert await page.evaluate(WITHOUT_HELP) == []
        assert await page.locator(".help").evaluate_all(SMALL_TARGETS) == 0
        mark = page.get_by_role("button", name="Help: Steps", exact=True)
        await mark.press("Enter")
        await expect(page.locator("#help-steps")).to_contain_text("How many times the noise is refined")
        await expect(page.locator("#announce")).to_contain_text("How many times")
        await expect(mark).to_have_attribute("aria-expanded", "true")
        await page.get_by_role("button", name="Help: Size").click()
        await check_accessible(page)
        assert await fits_across(page)
        await mark.press("Enter")
        await expect(page.locator("#help-steps")).to_have_count(0)


async def test_presets(address: str, visit: OpenPage) -> None:
    """Kept under a name, also after a reload: applied, overwritten, deleted and put back.

    Another view closes their dialog.
    """
    async with visit(address, statuses=(400,)) as page:  # its LoRA does not fit
        await ready(page)
        await page.fill("#prompt", "a cat")
        await page.fill("#steps", "7")
        await weigh(page, "inkwash", 0.5)
        await page.click("#presets-open")
        await page.locator("#preset-name").fill("Drafts")
        await page.get_by_role("button", name="Save").click()
        await check_accessible(page)
        await page.keyboard.press("Escape")
        await page.reload()
        await ready(page)
        await page.fill("#steps", "9")
        await page.fill("#prompt", "a dog")
        await page.get_by_role("button", name="Remove inkwash").click()
        await page.click("#presets-open")
        await page.get_by_role("button", name="Use Drafts").click()
        await expect(page.locator("#steps")).to_have_value("7")
        await expect(page.locator("#prompt")).to_have_value("a dog")
        await expect(page.get_by_label("Weight of inkwash")).to_have_value("0.5")
        await page.fill("#steps", "8")
        await page.click("#presets-open")
        await page.get_by_role("button", name="Overwrite Drafts").click()
        await page.locator("#ask-yes").click()
        await expect(page.locator("#preset-list")).to_contain_text("8 steps")
        await page.get_by_role("button", name="Delete Drafts").click()
        await expect(page.locator("#preset-list li")).to_have_count(0)
        await page.get_by_role("button", name="Put it back").click()
        await expect(page.locator("#preset-list li")).to_have_count(1)
        await page.locator("#presets").get_by_role("button", name="Reset").click()
        await expect(page.locator("#steps")).to_have_value("2")
        await page.click("#presets-open")
        await expect(page.locator("#presets")).to_be_visible()
        await page.evaluate("location.hash = '#/gallery'")
        await expect(page.locator("#view-gallery")).to_be_visible()
        await expect(page.locator("#presets")).to_be_hidden()


async def test_several_loras(address: str, visit: OpenPage) -> None:
    """Found by name, weighted by a slider; a click adds trigger words once; a misfit is told at once."""
    async with visit(address, statuses=(400,)) as page:
        await ready(page)
        await page.click("#lora-add")
        await page.locator("#picker-find").fill("tok")
        await expect(page.locator("#picker-list button")).to_have_count(1)
        await check_accessible(page)
        await page.keyboard.press("Enter")
        await page.get_by_label("Slider: inkwash").fill("0.75")
        await expect(page.locator("#cost")).to_contain_text("of memory")
        await weigh(page, "grain", -1)
        await expect(page.locator("#lora-add")).to_be_hidden()
        await expect(page.locator("#cost.warning")).to_contain_text("grain.gguf was made for another model")
        await page.fill("#prompt", "a cat")
        for _ in range(2):
            await page.get_by_role("button", name="Add to the prompt: TOK").click()
        await check_accessible(page)
        async with page.expect_request(asks) as sent:
            await page.click("#generate")
        body = json.loads((await sent.value).post_data or "")
        assert body["prompt"] == "a cat, TOK"
        assert body["lora"] == [{"name": "inkwash", "scale": 0.75}, {"name": "grain", "scale": -1}]
        await expect(page.locator("#create-error")).to_contain_text("made for another model")
        await expect(page.locator("#cost")).to_be_empty()
        await page.get_by_role("button", name="Remove grain").click()
        await expect(page.locator("#create-error")).to_be_empty()
        await expect(page.locator("#cost")).to_contain_text("of memory")


async def on_a_small_machine(route: Route) -> None:
    """As a server with too little memory for 512 x 512 says it."""
    if '"size":"512x512"' not in (route.request.post_data or ""):
        return await route.continue_()
    answer = await route.fetch()
    told = await answer.json()
    memory = {**told["memory"], "usable": 1_000_000, "fits": False}
    return await route.fulfill(
        response=answer, json={**told, "memory": memory, "cheaper": {"size": "256x256"}}
    )


async def test_what_a_picture_costs(address: str, visit: OpenPage) -> None:
    """Memory before the first picture, seconds after it; where it does not fit, a click takes what does."""
    async with visit(address) as page:
        cost = page.locator("#cost")
        await expect(cost).to_contain_text("of memory")
        await page.route("**/v1/images/generations", on_a_small_machine)
        await page.fill("#width", "512")
        await page.fill("#height", "512")
        await expect(cost).to_contain_text("Does not fit: needs")
        await check_accessible(page)
        await cost.get_by_role("button", name="Use 256 × 256").click()
        await expect(page.locator("#width")).to_have_value("256")
        await expect(cost).not_to_contain_text("Does not fit")
        for _ in range(2):
            await generate(page, "a cat", steps=100)
            await settled(page)
        await expect(cost).to_contain_text("About 1 s")


async def ask_for_set(page: Page) -> None:
    """Of twelve pictures."""
    await ready(page)
    await page.fill("#prompt", "a {red|blue} cat")
    await page.click("#set-open")
    await page.check("#set-expand")
    await page.fill("#set-steps", "1, 2")
    await page.fill("#set-seed", "5-7")
    await expect(page.locator("#set-hint")).to_contain_text("12 pictures")
    await check_accessible(page)
    await page.click("#set-send")


async def test_a_set_fills_its_grid(address: str, visit: OpenPage) -> None:
    """A column for each seed; a contact sheet; its pictures are on no other card, also after a reload.

    It is above the others until one of them is newer, and in view when it was asked for.
    """
    async with visit(address) as page:
        await ask_for_set(page)
        cells = page.locator(".cells li")
        await expect(page.locator(".cells li[data-status=succeeded] img[src]")).to_have_count(12)
        await expect(cells.nth(1).locator("small")).to_have_text("a red cat, steps 1, seed 6")
        tops = await cells.evaluate_all("(all) => all.map((each) => each.offsetTop)")
        assert len(set(tops)) == 4
        await expect(page.locator(".set .state")).to_have_text("12 pictures")
        await check_accessible(page)
        sheet = await page.get_by_role("link", name="Contact sheet").get_attribute("href")
        answer = await page.request.get(f"{address}{sheet}")
        assert answer.headers["content-type"] == "image/png"
        await expect(page.locator("#jobs .job")).to_have_count(0)
        await page.reload()
        await expect(page.locator(".cells li[data-status=succeeded]")).to_have_count(12)
        await page.locator(".cells a").first.click()
        await expect(page.locator("#viewer")).to_be_visible()
        await page.keyboard.press("Escape")
        above = "() => document.querySelector('#sets').offsetTop < document.querySelector('#jobs').offsetTop"
        assert await page.evaluate(above)
        await generate(page, "a newer picture", steps=1)
        await settled(page)
        assert not await page.evaluate(above)
        await page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        assert await fits_across(page)
        await page.click("#set-open")
        await page.fill("#set-seed", "8, 9")
        await page.click("#set-send")
        await expect(page.locator(".set .state").first).to_have_text("2 pictures")
        await expect(page.locator(".set .prompt").first).to_be_focused()
        await expect(page.locator(".set .prompt").first).to_be_in_viewport()
        for _ in range(2):
            await page.get_by_role("button", name="Dismiss the set").first.click()
        await expect(page.locator(".set")).to_have_count(0)


async def test_pictures_of_a_set_are_cancelled(running: RunningApp, visit: OpenPage) -> None:
    """One, which leaves the others, and then all."""
    async with running(engine=NeverAnswers) as app, visit(app.url) as page:
        await ask_for_set(page)
        await page.get_by_role("button", name="Cancel: a blue cat, steps 2, seed 7").click()
        await expect(page.locator(".cells li").last).to_have_attribute("data-status", "cancelled")
        await expect(page.locator(".set .state")).to_contain_text("1 of 12")
        await page.get_by_role("button", name="Cancel set").click()
        await expect(page.locator(".cells li[data-status=cancelled]")).to_have_count(12)
        await expect(page.get_by_role("button", name="Cancel set")).to_be_hidden()


async def test_waiting_jobs_change_places(running: RunningApp, visit: OpenPage) -> None:
    """The next one first: to its head, or by one place."""
    async with running(engine=NeverAnswers) as app, visit(app.url) as page:
        for prompt in ("runs", "one", "two", "three"):
            await generate(page, prompt, steps=1)
        waiting = page.locator("#waiting .prompt")
        await expect(waiting).to_have_text(["one", "two", "three"])
        await expect(page.get_by_role("button", name="Run next: one")).to_be_hidden()
        await check_accessible(page)
        await page.get_by_role("button", name="Run next: three").click()
        await expect(waiting).to_have_text(["three", "one", "two"])
        await page.get_by_role("button", name="Run sooner: two").click()
        await expect(waiting).to_have_text(["three", "two", "one"])


async def test_a_job_is_done_again(address: str, visit: OpenPage) -> None:
    """With its settings, whatever the form says now, and another seed."""
    async with visit(address) as page:
        await generate(page, "a cat", steps=3, seed=5)
        await settled(page)
        await page.fill("#prompt", "a dog")
        async with page.expect_request(asks) as sent:
            await page.get_by_role("button", name="Redo: a cat").click()
        body = json.loads((await sent.value).post_data or "")
        assert (body["prompt"], body["steps"]) == ("a cat", 3)
        assert "seed" not in body
        await expect(page.locator(".picture[data-state=done]")).to_have_count(2)


async def test_a_picture_gets_a_larger_canvas(running: RunningApp, visit: OpenPage) -> None:
    """Its frame is dragged by mouse or set by number; the kept pixels are the very same.

    Without the picture, size and strength are as they were.
    """
    original = noise(96, 64)
    async with running(engine=QuickEngine) as app, visit(app.url) as page:
        await ready(page)
        before = {name: await page.input_value(f"#{name}") for name in ("width", "height", "strength")}
        await page.set_input_files("#file", upload("noise.png", png(original)))
        await page.click("#extend")
        await expect(page.locator("#extend-done")).to_be_disabled()
        await page.fill("#extend-left", "32")
        handle = await page.locator(".handle[data-sides=bottom]").bounding_box()
        assert handle is not None
        across, down = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        await page.mouse.move(across, down)
        await page.mouse.down()
        await page.mouse.move(across, down + 60, steps=3)
        await page.mouse.up()
        added = int(await page.input_value("#extend-bottom"))
        assert added > 0
        await check_accessible(page)
        await page.click("#extend-done")
        await expect(page.locator("#width")).to_have_value("128")
        await expect(page.locator("#height")).to_have_value(str(64 + added))
        await generate(page, "a wide cat", steps=1)
        await settled(page)
        made = pixels(await newest(page, app))
        assert made.shape == (64 + added, 128, 3)
        assert (made[:64, 32:] == pixels(original)).all()
        assert (made[:, :32] == 128).all()
        assert np.unique(made[64:]).tolist() == [128]
        await page.locator(".thumb button").click()
        for name, value in before.items():
            await expect(page.locator(f"#{name}")).to_have_value(value)
