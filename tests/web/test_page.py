"""Every view, in light and dark, on a phone and on a large screen, by keyboard, and by axe-core."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from tests.api.client import noise, png
from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import QuickEngine
from tests.modelfiles.test_lora_card import lora
from tests.web.conftest import (
    OpenPage,
    check_accessible,
    fits_across,
    generate,
    newest_job,
    ready,
    settled,
    unfold,
    weigh,
)
from tests.weights import write_lora

VIEWS = {"create": "#model", "gallery": "#gallery li", "models": ".model", "server": "#lanes .model"}
"""Each with what is there once it has been read."""
SMALL_TARGETS = """[...document.querySelectorAll(
    "button, .button, nav a, summary, select, input:not([type=checkbox]), .check")]
  .filter((each) => each.checkVisibility() && getComputedStyle(each).clipPath === "none")
  .filter((each) => {
    const {width, height} = each.getBoundingClientRect();
    return Math.min(width, height) < 43.9;
  }).map((each) => each.outerHTML.slice(0, 120))"""
"""What a finger would miss; a box to tick is as large as its label."""
SIZES = {"phone": (360, 740), "tablet": (860, 1100), "desk": (1440, 900), "4k": (3840, 2160)}


async def go(page: Page, view: str) -> None:
    await page.evaluate(f"location.hash = '#/{view}'")
    await expect(page.locator(f"#view-{view}")).to_be_visible()
    await expect(page.locator(VIEWS[view]).first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_is_accessible(studio: ServerProcess, visit: OpenPage, scheme: str) -> None:
    """axe-core finds nothing in any view or dialog, with jobs in every state."""
    async with visit(studio.url, color_scheme=scheme) as page:
        await generate(page, "a cat", steps=1, count=2)
        await settled(page)
        await generate(page, "a long one", steps=150)
        await expect(newest_job(page).locator(".picture[data-state=preview]")).to_be_visible()
        await unfold(page)
        file = {"name": "noise.png", "mimeType": "image/png", "buffer": png(noise())}
        await page.set_input_files("#file", file)  # type: ignore[arg-type]
        await expect(page.locator(".thumb")).to_have_count(1)
        await check_accessible(page)
        await newest_job(page).get_by_role("button", name="Cancel").click()
        await expect(newest_job(page).locator(".state")).to_have_text("Cancelled")
        await page.fill("#prompt", "")
        await page.click("#generate")
        await check_accessible(page)
        for view in ("gallery", "models", "server"):
            await go(page, view)
            await check_accessible(page)
        await go(page, "gallery")
        await page.locator("#gallery button").first.click()
        await check_accessible(page)
        await page.get_by_role("button", name="Copy seed").click()
        await expect(page.locator(".toast")).to_be_visible()
        await check_accessible(page)


@pytest.mark.parametrize("size", SIZES)
async def test_nothing_scrolls_sideways(studio: ServerProcess, visit: OpenPage, size: str) -> None:
    """From 360 px to 4K, in every view and dialog."""
    width, height = SIZES[size]
    async with visit(studio.url, viewport={"width": width, "height": height}) as page:
        await ready(page)
        await unfold(page)
        await generate(page, "averylongwordwithoutanyspaceinit" * 9, steps=1, count=3)
        await settled(page)
        for view in VIEWS:
            await go(page, view)
            assert await fits_across(page), view
        await go(page, "create")
        await page.locator(".job .tile").first.click()
        await expect(page.locator("#viewer")).to_be_visible()
        assert await page.evaluate("document.querySelector('#viewer').scrollWidth <= innerWidth")
        assert await fits_across(page)
        await page.get_by_role("button", name="Use as input").click()
        await page.get_by_role("button", name="Paint a mask…").click()
        await expect(page.locator("#mask")).to_be_visible()
        inside = """(() => {
            const dialog = document.querySelector("#mask");
            return dialog.scrollWidth <= dialog.clientWidth && dialog.clientWidth <= innerWidth;
        })()"""
        assert await page.evaluate(inside)
        box = await page.locator("#mask-done").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= height


async def test_from_right_to_left(running: RunningApp, visit: OpenPage) -> None:
    """The page begins at its right edge: nothing hidden makes it wider."""
    async with running(engine=QuickEngine) as app, visit(app.url) as page:
        await ready(page)
        await page.evaluate("document.documentElement.dir = 'rtl'")
        assert await fits_across(page)


async def test_targets_are_large_enough_for_fingers(studio: ServerProcess, visit: OpenPage) -> None:
    """44 px at least, in every view and dialog of a phone."""
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
    async with visit(studio.url, statuses=(400,), **phone) as page:  # the LoRA is another model's
        await generate(page, "a cat", steps=1)
        await settled(page)
        file = {"name": "noise.png", "mimeType": "image/png", "buffer": png(noise())}
        await page.set_input_files("#file", file)  # type: ignore[arg-type]
        await expect(page.locator(".thumb")).to_have_count(1)
        await weigh(page, "watercolour", 0.5)
        assert await page.evaluate(SMALL_TARGETS) == []
        for opener, dialog in (
            ("#presets-open", "#presets"),
            ("#set-open", "#setter"),
            ("#extend", "#extender"),
        ):
            await page.click(opener)
            await expect(page.locator(dialog)).to_be_visible()
            assert await page.evaluate(SMALL_TARGETS) == []
            await page.locator(dialog).get_by_role("button", name="Close").click()
        for view in ("gallery", "models", "server"):
            await go(page, view)
            assert await page.evaluate(SMALL_TARGETS) == [], view
        await go(page, "gallery")
        await page.locator("#gallery .tile").first.click()
        await expect(page.locator("#viewer")).to_be_visible()
        assert await page.evaluate(SMALL_TARGETS) == []


async def test_by_keyboard_alone(studio: ServerProcess, visit: OpenPage) -> None:
    """From the address bar to a finished picture, its viewer, and back to where the focus was."""
    async with visit(studio.url) as page:
        await ready(page)
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        await page.keyboard.press("Tab")
        await expect(page.locator("#prompt")).to_be_focused()
        await page.keyboard.type("a house")
        await page.keyboard.press("Control+Enter")
        await expect(newest_job(page)).to_contain_text("a house")
        await settled(page)
        tile = newest_job(page).locator(".tile").first
        await tile.press("Enter")
        await expect(page.locator("#viewer")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(tile).to_be_focused()


async def test_typing_goes_on_after_sending(studio: ServerProcess, visit: OpenPage) -> None:
    """Ctrl+Enter leaves the focus, the caret and the page where they are, on a phone as on a desk."""
    async with visit(studio.url) as page:
        for size in ({"width": 1440, "height": 800}, {"width": 360, "height": 740}):
            await page.set_viewport_size(size)  # type: ignore[arg-type]
            await page.goto(studio.url)
            await ready(page)
            await page.fill("#prompt", "a ca")
            await page.evaluate("scrollTo(0, 7)")
            await page.press("#prompt", "Control+Enter")
            await page.keyboard.type("t")
            await settled(page)
            await page.keyboard.type("s")
            await expect(page.locator("#prompt")).to_have_value("a cats")
            await expect(page.locator("#prompt")).to_be_focused()
            assert await page.evaluate("scrollY") == 7


async def test_a_view_begins_at_its_top(studio: ServerProcess, visit: OpenPage) -> None:
    """Its title is not scrolled away by its address; what skips to the content stays in the view."""
    async with visit(studio.url, "#models") as page:
        await go(page, "models")
        await page.get_by_role("link", name="Models").click()
        await page.get_by_role("link", name="Models").click()
        assert await page.evaluate("scrollY") == 0
        await page.get_by_role("link", name="Skip to content").press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        await expect(page.locator("#view-models")).to_be_visible()


@pytest.mark.parametrize("size", SIZES)
async def test_a_whole_seed_is_seen(studio: ServerProcess, visit: OpenPage, size: str) -> None:
    """All digits of the largest, in letters as large as those of the other fields."""
    width, height = SIZES[size]
    async with visit(studio.url, viewport={"width": width, "height": height}) as page:
        await ready(page)
        await unfold(page)
        await page.fill("#seed", str(2**53 - 1))
        assert await page.evaluate("seed.scrollWidth <= seed.clientWidth")
        letters = "[seed, lock, steps].map((element) => getComputedStyle(element).fontSize)"
        assert len(set(await page.evaluate(letters))) == 1
        assert await fits_across(page)


@pytest.mark.parametrize("size", [(1440, 800), (360, 740)])
async def test_more_settings_come_into_view(
    studio: ServerProcess, visit: OpenPage, size: tuple[int, int]
) -> None:
    """Above the bar with Generate, by mouse and by keyboard; not when the page opens with them."""
    above = "() => lock.getBoundingClientRect().bottom <= generate.getBoundingClientRect().top"
    async with visit(studio.url, viewport={"width": size[0], "height": size[1]}) as page:
        await expect(page.locator("#generate")).to_be_enabled()
        summary = page.locator("#more summary")
        for key in ("", "Enter"):
            await (summary.press(key) if key else summary.click())
            await page.wait_for_function(above)
            await summary.click()
            await expect(page.locator("#defaults")).to_be_hidden()
        await summary.click()
        other = await page.context.new_page()
        await other.goto(studio.url)
        await expect(other.locator("#generate")).to_be_enabled()
        await expect(other.locator("#defaults")).to_be_visible()
        assert await other.evaluate("scrollY + document.querySelector('#create').scrollTop") == 0


async def test_less_motion(studio: ServerProcess, visit: OpenPage) -> None:
    """Nothing moves for those who asked for that."""
    async with visit(studio.url, reduced_motion="reduce") as page:
        await generate(page, "a cat", steps=2)
        moving = (
            "[...document.querySelectorAll('*')].some((e) => getComputedStyle(e).transitionDuration !== '0s')"
        )
        assert not await page.evaluate(moving)
        await settled(page)


async def test_a_finished_picture_notifies(studio: ServerProcess, visit: OpenPage) -> None:
    """When it was asked to, and nobody looks at the page."""
    async with visit(studio.url) as page:
        await page.context.grant_permissions(["notifications"])
        await ready(page)
        await page.evaluate(
            """() => {
                window.told = [];
                window.Notification = class {
                  static permission = "granted";
                  static requestPermission = async () => "granted";
                  constructor(title, {body}) { window.told.push(`${title}: ${body}`); }
                };
                Object.defineProperty(document, "hidden", {value: true});
            }"""
        )
        await page.get_by_label("Notify me").check()
        await generate(page, "a bell", steps=2)
        await settled(page)
        await page.wait_for_function("() => window.told.length > 0")
        assert await page.evaluate("window.told") == ["A picture is finished: a bell"]


async def test_below_a_prefix(running: RunningApp, visit: OpenPage) -> None:
    """Every request of the page stays below its own address; the gallery shows thumbnails."""
    async with running(engine=QuickEngine, root_path="/img") as app, visit(f"{app.url}/img") as page:
        await generate(page, "a cat", width=256, height=128, steps=1)
        done = page.locator(".tile img").first
        await expect(done).to_have_attribute("src", re.compile("^/img/v1/images/files/"))
        await page.evaluate("location.hash = '#/gallery'")
        small = page.locator("#gallery img")
        await expect(small).to_have_attribute("src", re.compile(r"^/img/v1/images/files/.*\?width=512$"))
        await small.click()
        whole = page.locator("#viewer-figure img")
        await expect(whole).to_have_js_property("naturalWidth", 256)
        await page.click("#viewer-actions >> text=Use as input")
        await expect(page.locator("#inputs li")).to_have_count(1)


async def test_the_page_needs_openais_dialect_alone(
    running: RunningApp, visit: OpenPage, tmp_path: Path
) -> None:
    """Pictures are made, add-ons offered and settings read from a picture, with every other dialect off."""
    write_lora(tmp_path / "watercolour.gguf")
    lora(tmp_path / "said.safetensors", {"modelspec.trigger_phrase": "TOK, in ink"})
    async with (
        running(engine=QuickEngine, dialects="openai", lora_dir=tmp_path) as app,
        visit(app.url) as page,
    ):
        await generate(page, "a cat", steps=2)
        await settled(page)
        await unfold(page)
        await page.click("#lora-add")
        await expect(page.locator("#picker-list button", has_text="watercolour")).to_be_visible()
        await page.locator("#picker-list button", has_text="TOK, in ink").click()
        await expect(page.get_by_label("Weight of said")).to_have_value("1")
        listed = (await app.get("/v1/images"))[1]["data"]
        async with app.session.get(listed[0]["url"]) as answer:
            file = {"name": "made.png", "mimeType": "image/png", "buffer": await answer.read()}
        await page.fill("#prompt", "")
        await page.set_input_files("#file", file)  # type: ignore[arg-type]
        await page.get_by_role("button", name="Load its settings").click()
        await expect(page.locator("#prompt")).to_have_value("a cat")
