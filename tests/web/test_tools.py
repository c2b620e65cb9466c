"""Tools of the page: prompts, weights, completion, stars, selections, themes, the state of the server."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Route, expect

from tests.conftest import DEADLINE, RunningApp
from tests.fake_engines import QuickEngine
from tests.modelfiles.test_lora_card import lora
from tests.web.conftest import (
    OpenPage,
    asks,
    check_accessible,
    fits_across,
    generate,
    newest_job,
    ready,
    send,
    settled,
)
from tests.weights import write_upscaler

log = logging.getLogger("gguf_imagegen.tests")


@pytest_asyncio.fixture
async def address(running: RunningApp, tmp_path: Path) -> AsyncIterator[str]:
    """Of a server of a quick engine, with a LoRA."""
    lora(tmp_path / "inkwash.safetensors", {"modelspec.trigger_phrase": "TOK, in ink"})
    async with running(engine=QuickEngine, lora_dir=tmp_path) as app:
        yield app.url


async def test_words_are_weighted(address: str, visit: OpenPage) -> None:
    """Ctrl and an arrow key, on the word at the caret or the selection; at 1 without brackets."""
    async with visit(address) as page:
        await ready(page)
        prompt = page.locator("#prompt")
        await prompt.fill("a red cat")
        await page.keyboard.press("Control+ArrowUp")
        await page.keyboard.press("Control+ArrowUp")
        await expect(prompt).to_have_value("a red (cat:1.2)")
        for _ in range(3):
            await page.keyboard.press("Control+ArrowDown")
        await expect(prompt).to_have_value("a red (cat:0.9)")
        await page.keyboard.press("Control+ArrowUp")
        await expect(prompt).to_have_value("a red cat")
        await prompt.evaluate("(field) => field.setSelectionRange(2, 9)")
        await page.keyboard.press("Control+ArrowUp")
        await expect(prompt).to_have_value("a (red cat:1.1)")


async def test_a_lora_is_completed(address: str, visit: OpenPage) -> None:
    """After "<", with its trigger words, by keyboard and by mouse; Escape leaves what was typed.

    Its tag is sent as the field that the server takes it from.
    """
    async with visit(address, statuses=(400,)) as page:  # the LoRA is another model's
        await ready(page)
        prompt = page.locator("#prompt")
        await prompt.press_sequentially("a cat, <ink")
        await expect(page.locator("#completions li")).to_contain_text("inkwash")
        await check_accessible(page)
        await page.keyboard.press("Enter")
        await expect(prompt).to_have_value("a cat, <lora:inkwash:1>, TOK, in ink")
        await expect(page.locator("#completions")).to_be_hidden()
        await prompt.press_sequentially(", <")
        await page.keyboard.press("Escape")
        await expect(page.locator("#completions")).to_be_hidden()
        await prompt.press_sequentially("i")
        await page.locator("#completions li").click()
        await expect(prompt).to_have_value("a cat, " + ", ".join(["<lora:inkwash:1>, TOK, in ink"] * 2))
        await prompt.fill("<lora:inkwash:0.5>, a cat, <lora:unknown:1>")
        async with page.expect_request(asks) as sent:
            await page.click("#generate")
        body = json.loads((await sent.value).post_data or "")
        assert body["prompt"] == "a cat, <lora:unknown:1>"
        assert body["lora"] == [{"name": "inkwash", "scale": 0.5}]


async def test_prompts_come_back(address: str, visit: OpenPage) -> None:
    """Those that were sent, the newest first, each once, also after a reload."""
    async with visit(address) as page:
        for text in ("one", "two", "one"):
            await generate(page, text, steps=1)
        await settled(page)
        await page.reload()
        await ready(page)
        await page.get_by_role("button", name="History").click()
        await expect(page.locator("#prompts button")).to_have_text(["one", "two"])
        await check_accessible(page)
        await page.locator("#prompts button").last.click()
        await expect(page.locator("#prompt")).to_have_value("two")
        await expect(page.locator("#prompts")).to_be_hidden()


async def test_prompts_come_back_on_a_phone(address: str, visit: OpenPage) -> None:
    """The list is above the pictures, because the bar with the prompt has no room for it."""
    async with visit(address, viewport={"width": 360, "height": 740}) as page:
        await generate(page, "a cat", steps=1)
        await settled(page)
        await page.fill("#prompt", "")
        await page.get_by_role("button", name="History").click()
        await page.locator("#prompts button").click()
        await expect(page.locator("#prompt")).to_have_value("a cat")
        assert await fits_across(page)


async def test_an_example_is_one_click(address: str, visit: OpenPage) -> None:
    """From an empty page to the first picture; the focus does not go with the examples."""
    async with visit(address) as page:
        await page.locator("#examples button").first.press("Enter")
        await expect(page.locator("#examples")).to_be_hidden()
        await expect(page.locator("#watch-title")).to_be_focused()
        await settled(page)
        await expect(page.locator("#stage .picture[data-state=done]")).to_have_count(1)


async def test_it_generates_until_told_otherwise(address: str, visit: OpenPage) -> None:
    """One after the other while the box is checked."""
    async with visit(address) as page:
        await ready(page)
        await page.check("#forever")
        await page.fill("#prompt", "on and on")
        await send(page)
        await expect(page.locator(".job").nth(2)).to_be_attached()
        await page.uncheck("#forever")
        await settled(page)


async def test_pictures_are_found_starred_and_deleted_together(address: str, visit: OpenPage) -> None:
    """In the gallery; stars outlive a reload."""
    async with visit(address) as page:
        for text in ("a cat", "a dog", "a cat in a hat"):
            await generate(page, text, steps=1)
        await settled(page)
        await page.get_by_role("link", name="Gallery").click()
        tiles = page.locator("#gallery li:visible")
        await expect(tiles).to_have_count(3)
        await page.locator("#gallery-find").fill("cat")
        await expect(tiles).to_have_count(2)
        await page.locator("#gallery-find").fill("cow")
        await page.get_by_role("button", name="Show all").click()
        await expect(tiles).to_have_count(3)
        await page.get_by_role("button", name="Open: a dog").click()
        await page.get_by_role("button", name="Star this picture").click()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("button", name="Star: a dog")).to_have_attribute("aria-pressed", "true")
        await page.get_by_label("Starred").check()
        await expect(tiles).to_have_count(1)
        await page.reload()
        await page.get_by_label("Starred").check()
        await expect(tiles).to_have_count(1)
        await page.get_by_label("Starred").uncheck()
        select = page.get_by_role("button", name="Select", exact=True)
        await select.click()
        await page.get_by_role("button", name="Open: a cat in a hat").press("Enter")
        await page.get_by_role("button", name="Open: a cat", exact=True).click(modifiers=["Shift"])
        await expect(page.locator("#selected-count")).to_have_text("3 selected")
        await page.keyboard.press("Escape")
        await expect(page.locator("#selected")).to_be_hidden()
        await expect(select).to_be_focused()
        await select.click()
        await page.get_by_role("button", name="Open: a cat", exact=True).click()
        await page.get_by_role("button", name="Open: a dog").click()
        await expect(page.locator("#selected-count")).to_have_text("2 selected")
        await check_accessible(page)
        await page.locator("#selected-delete").click()
        await page.locator("#ask").get_by_role("button", name="Delete").click()
        await expect(tiles).to_have_count(1)
        await expect(select).to_be_focused()
        await expect(page.locator("#gallery-hint")).to_have_text("1 picture")
        await page.get_by_role("link", name="Create").click()
        await expect(page.locator(".job .prompt")).to_have_text(["a cat in a hat"])


async def test_a_picture_is_upscaled(running: RunningApp, visit: OpenPage, tmp_path: Path) -> None:
    """From the viewer, as a job of its own."""
    write_upscaler(tmp_path / "double.gguf", 2)
    async with running(engine=QuickEngine, upscaler_dir=tmp_path) as app, visit(app.url) as page:
        await generate(page, "a cat", steps=1)
        await settled(page)
        await page.locator("#stage .tile").click()
        await page.get_by_role("button", name="Upscale", exact=True).click()
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(newest_job(page)).to_contain_text("Upscaled picture")
        await expect(newest_job(page).locator(".picture[data-state=done]")).to_have_count(1)
        await expect(page.locator("#announce")).to_contain_text("“Upscaled picture” is finished")


async def test_a_theme_is_kept(address: str, visit: OpenPage) -> None:
    """Light, dark or the system's."""
    ground = "getComputedStyle(document.body).backgroundColor"
    async with visit(address, color_scheme="light") as page:
        light = await page.evaluate(ground)
        await page.locator("#theme").click()
        assert await page.evaluate(ground) == light
        await page.locator("#theme").click()
        await expect(page.locator("#theme")).to_have_attribute("aria-label", "Theme: dark")
        dark = await page.evaluate(ground)
        assert dark != light
        await page.reload()
        await ready(page)
        assert await page.evaluate(ground) == dark
        await check_accessible(page)


async def test_the_state_of_the_server(
    running: RunningApp, visit: OpenPage, caplog: pytest.LogCaptureFixture
) -> None:
    """Its lanes, models, version and log, and the way to the API's description, below a prefix as well."""
    caplog.set_level(logging.INFO)
    async with (
        running(engine=QuickEngine, root_path="/img") as app,
        visit(f"{app.url}/img", "#/server") as page,
    ):
        for words in ("Version", "free", "on this machine", "Pictures"):
            await expect(page.locator("#server")).to_contain_text(words)
        await expect(page.locator("#lanes .model").first).to_be_visible()
        await app.post("/img/v1/images/generations", prompt="a cat", size="64x64", steps=1)
        lines = page.locator("#log li")
        await expect(lines.last).to_contain_text("succeeded")
        log.warning("beware")
        await expect(lines.last).to_contain_text("warning beware")
        await page.get_by_label("Warnings only").check()
        await expect(lines.first).to_be_hidden()
        await expect(lines.last).to_be_visible()
        await check_accessible(page)
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await fits_across(page)
        link = page.get_by_role("link", name="API documentation")
        assert await link.evaluate("(link) => link.pathname") == "/img/docs"
        async with app.session.get(f"{app.url}/img/web/manifest.webmanifest") as answer:
            assert answer.content_type == "application/manifest+json"
            assert json.loads(await answer.text())["display"] == "standalone"


async def test_the_first_load_is_small(running: RunningApp, visit: OpenPage) -> None:
    """All that the page needs before it can generate, compressed; and not the whole catalog."""
    sizes: list[int] = []
    async with running(engine=QuickEngine) as app, visit(app.url) as page:
        addresses: list[str] = []
        page.on("request", lambda request: addresses.append(request.url))
        await page.reload()
        await ready(page)
        assert not any("all=true" in each or "viewer.js" in each for each in addresses)
        for each in {each for each in addresses if "/web/" in each or each == f"{app.url}/"}:
            async with app.session.get(each) as answer:
                sizes.append(int(answer.headers["Content-Length"]))
    assert sum(sizes) <= 50_000


async def test_the_server_is_asked_while_the_page_comes(running: RunningApp, visit: OpenPage) -> None:
    """For the models, before the form's own scripts are there."""
    async with running(engine=QuickEngine) as app, visit(app.url) as page:
        await ready(page)
        asked = asyncio.Event()

        async def hold(route: Route) -> None:
            await asyncio.wait_for(asked.wait(), DEADLINE)
            await route.continue_()

        page.on("request", lambda request: asked.set() if request.url.endswith("/v1/models") else None)
        await page.route("**/web/create.js", hold)
        await page.reload()
        await ready(page)
