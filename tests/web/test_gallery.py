"""The gallery and the viewer: many pictures, keyboard, copies, deletion, restarts."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import CDPSession, Locator, Page, expect

from gguf_imagegen.pictures import infotext
from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine
from tests.web.conftest import OpenPage, check_accessible, generate, ready, settled

MANY = 200
WATCH_TILES = """
window.made = new Set(document.querySelectorAll("#gallery li"));
const add = ({addedNodes}) => addedNodes.forEach((each) => made.add(each));
new MutationObserver((changes) => changes.forEach(add))
  .observe(document.querySelector("#gallery"), {childList: true});
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two hundred pictures that were made before."""
    folder = tmp_path_factory.mktemp("shelf")
    rng = np.random.default_rng(1)
    for number in range(MANY):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        text = infotext.text_of(infotext.settings_of(
            prompt=f"picture {number}", steps=4, sampler="euler", schedule="discrete", cfg_scale=2.5,
            seed=number, width=512, height=512, model="tiny-random", version="a test",
        ))  # fmt: skip
        name = f"20260101-{number // 60:02}{number % 60:02}00-{secrets.token_urlsafe(18)}.png"
        small.resize((512, 512), 0).save(folder / name, pnginfo=infotext.png_text(text))
    return folder


def tile(page: Page, number: int) -> Locator:
    """What opens this picture of the shelf."""
    return page.get_by_role("button", name=f"Open: picture {number}", exact=True)


async def scroll_to_end(page: Page) -> None:
    """Down, a screen at a time, until the last picture is there."""
    for _ in range(200):
        await page.mouse.wheel(0, 700)
        await page.wait_for_timeout(30)
        if await tile(page, 0).count():
            return
    raise AssertionError("the gallery did not come to its end")


async def test_two_hundred_pictures(running: RunningApp, visit: OpenPage, shelf: Path) -> None:
    """They come as one scrolls, the newest first, in tiles that are used again; the viewer shows them all."""
    async with running(engine=QuickEngine, output_dir=shelf) as app, visit(app.url, "#/gallery") as page:
        tiles, end = page.locator("#gallery li"), page.locator("#gallery-end")
        await expect(tile(page, 199)).to_be_visible()
        few = await tiles.count()
        assert few <= 100
        await page.evaluate(WATCH_TILES)
        address = str(await tile(page, 199).locator("img").get_attribute("src"))
        assert address.endswith("?width=256")  # no more pixels than are seen
        await expect(page.locator("#gallery-hint")).to_have_text("200 pictures")
        await tile(page, 199).click()
        await expect(page.locator("#viewer-title")).to_have_text("Picture 1 of 200")
        await page.keyboard.press("Escape")
        await page.mouse.move(600, 400)
        await scroll_to_end(page)
        await expect(page.locator("#gallery-hint")).to_have_text("200 pictures")
        await tile(page, 2).click()
        await expect(page.locator("#viewer-title")).to_have_text("Picture 198 of 200")
        for _ in range(5):
            await page.keyboard.press("ArrowRight")
        await expect(page.locator("#viewer-title")).to_have_text("Picture 200 of 200")
        await expect(page.locator("#viewer-prompt")).to_have_text("picture 0")
        await page.keyboard.press("ArrowLeft")
        await expect(page.locator("#viewer-prompt")).to_have_text("picture 1")
        await page.keyboard.press("Escape")
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(tile(page, 2)).to_be_focused()
        assert await tiles.count() <= 2 * few
        await expect(tile(page, 199)).to_have_count(0)
        # more than once: the browser restores the place from before the viewer when it gets to it
        await page.wait_for_function(
            "scrollTo(0, 0) ?? document.querySelector('[aria-label=\"Open: picture 199\"]')"
        )
        await expect(tile(page, 199)).to_be_visible()
        await expect(page.locator("#gallery")).to_be_focused()
        await page.evaluate("scrollTo(0, 1e6)")
        await expect(tile(page, 0)).to_be_visible()
        assert await page.evaluate("made.size") <= 2 * few
        last, after = await tile(page, 0).bounding_box(), await end.bounding_box()
        assert last is not None
        assert after is not None
        assert 0 <= after["y"] - last["y"] - last["height"] < 20


async def test_the_viewer_goes_on_past_a_page(running: RunningApp, visit: OpenPage, shelf: Path) -> None:
    """The arrow keys read further pages of the gallery, each once, however fast they come."""
    viewport = {"width": 500, "height": 300}
    async with (
        running(engine=QuickEngine, output_dir=shelf) as app,
        visit(app.url, "#/gallery", viewport=viewport) as page,
    ):
        await tile(page, 199).click()
        await page.evaluate(
            """() => {
                const key = new KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true});
                const dialog = document.querySelector("#viewer");
                for (let times = 0; times < 62; times += 1) dialog.dispatchEvent(key);
            }"""
        )
        await expect(page.locator("#viewer-prompt")).to_have_text("picture 137")
        await expect(page.locator("#viewer-title")).to_have_text("Picture 63 of 200")


async def test_everything_about_a_picture(running: RunningApp, visit: OpenPage, tmp_path: Path) -> None:
    """All parameters, copies of them, the file itself, and its end; what was made stays after a restart."""
    async with running(engine=QuickEngine, output_dir=tmp_path) as app, visit(app.url) as page:
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await generate(page, "it's a cat", steps=2, seed=42)
        await settled(page)
        await page.locator(".job .tile").first.click()
        parameters = page.locator("#viewer-parameters")
        for text in ("Seed", "42", "tiny-random", "128x128", "Version"):
            await expect(parameters).to_contain_text(text)
        copied = {}
        for name in ("seed", "Prompt", "JSON", "curl"):
            await page.get_by_role("button", name=f"Copy {name}").click()
            await expect(page.locator(".toast")).to_have_count(1)
            copied[name] = await page.evaluate("navigator.clipboard.readText()")
            await page.get_by_role("button", name="Dismiss", exact=True).click()
        assert (copied["seed"], copied["Prompt"]) == ("42", "it's a cat")
        request = json.loads(copied["JSON"])
        assert (request["seed"], request["size"], request["steps"]) == (42, "128x128", 2)
        assert r"it'\''s a cat" in copied["curl"]
        async with page.expect_download() as download:
            await page.get_by_role("link", name="Download").click()
        assert (await download.value).suggested_filename == next(tmp_path.iterdir()).name
        await check_accessible(page)
    async with running(engine=QuickEngine, output_dir=tmp_path) as app, visit(app.url, "#/gallery") as page:
        await page.get_by_role("button", name="Open: it's a cat").click()
        await page.get_by_role("button", name="Delete").click()
        await check_accessible(page)
        await page.get_by_role("button", name="Keep").click()
        assert len(list(tmp_path.iterdir())) == 1
        await page.get_by_role("button", name="Load settings").click()
        await expect(page.locator("#prompt")).to_be_focused()
        await page.get_by_role("link", name="Gallery").click()
        await page.get_by_role("button", name="Open: it's a cat").click()
        await page.get_by_role("button", name="Use as input").click()
        await expect(page.locator("#inputs-field")).to_be_focused()
        await page.get_by_role("link", name="Gallery").click()
        await page.get_by_role("button", name="Open: it's a cat").click()
        await page.get_by_role("button", name="Delete").click()
        await page.locator("#ask").get_by_role("button", name="Delete").click()
        await expect(page.locator("#viewer")).to_be_hidden()
        await expect(page.locator("#gallery-empty")).to_be_visible()
        assert list(tmp_path.iterdir()) == []


async def test_a_picture_has_an_address(running: RunningApp, visit: OpenPage, shelf: Path) -> None:
    """Back closes it, Forward opens it again, the arrows change it, and a link to it opens it."""
    async with running(engine=QuickEngine, output_dir=shelf) as app, visit(app.url, "#/gallery") as page:
        viewer = page.locator("#viewer")
        await page.get_by_role("button", name="Open: picture 198").click()
        await expect(viewer).to_be_visible()
        first = page.url
        assert "#/picture/" in first
        image, zoom = page.locator("#viewer-figure img"), page.get_by_role("button", name="Actual size")
        await zoom.click()
        await page.wait_for_function("() => document.querySelector('#viewer-figure img').clientWidth === 512")
        await image.dblclick()
        await expect(zoom).to_have_attribute("aria-pressed", "false")
        await page.keyboard.press("ArrowRight")
        await expect(page.locator("#viewer-prompt")).to_have_text("picture 197")
        second = page.url
        assert "#/picture/" in second
        assert first != second
        await page.go_back()
        await expect(viewer).to_be_hidden()
        assert page.url.endswith("#/gallery")
        await expect(page.locator("#view-gallery")).to_be_visible()
        await page.go_forward()
        await expect(page.locator("#viewer-prompt")).to_have_text("picture 197")
        await page.get_by_role("button", name="Close").click()
        await expect(viewer).to_be_hidden()
        await page.wait_for_url("**/#/gallery")
        other = await page.context.new_page()
        await other.goto(first)
        await expect(other.locator("#viewer-prompt")).to_have_text("picture 198")
        await other.keyboard.press("Escape")
        await expect(other.locator("#viewer")).to_be_hidden()
        await expect(other.locator("#view-gallery")).to_be_visible()


async def test_two_pictures_are_compared(running: RunningApp, visit: OpenPage, shelf: Path) -> None:
    """Chosen in the gallery or from the viewer; an edge between them, what differs, an address of both."""
    async with running(engine=QuickEngine, output_dir=shelf) as app, visit(app.url, "#/gallery") as page:
        tiles, bar = page.locator("#gallery .tile"), page.locator("#selected")
        title, pair = page.locator("#viewer-title"), page.locator("#viewer .pair img")
        await page.get_by_role("button", name="Select").click()
        compare = bar.get_by_role("button", name="Compare")
        await tiles.nth(0).click()
        await expect(compare).to_be_disabled()
        await tiles.nth(2).click()
        await compare.click()
        await expect(title).to_have_text("Comparison")
        await expect(page.locator("#viewer-parameters")).to_contain_text("199 → 197")
        await expect(page.locator("#viewer-parameters")).not_to_contain_text("Steps")
        await expect(pair.last).to_have_js_property("naturalWidth", 512)
        box = await page.locator("#viewer .pair").bounding_box()
        assert box is not None
        await page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
        await page.mouse.down()
        await page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 50)
        await page.mouse.up()
        await page.wait_for_function("() => document.querySelector('.compare input').value < 26")
        await check_accessible(page)
        await page.reload()
        await expect(pair).to_have_count(2)
        await expect(title).to_have_text("Comparison")
        await page.get_by_role("button", name="End comparison").click()
        await expect(pair).to_have_count(0)
        await page.get_by_role("button", name="Compare with…").click()
        await expect(page.locator("#selected-count")).to_have_text("Choose the picture to compare with.")
        await tiles.nth(4).click()
        await expect(page.locator("#viewer-parameters")).to_contain_text("197 → 195")
        await page.keyboard.press("Escape")
        await expect(bar).to_be_hidden()


class Fingers:
    """Touches of the page, as its screen would report them."""

    def __init__(self, session: CDPSession) -> None:
        self._session = session

    async def move(self, *paths: tuple[tuple[float, float], tuple[float, float]]) -> None:
        """A finger for each path, all at once, from its start to its end."""
        for part in range(11):
            at = [
                {"x": x + (to_x - x) * part / 10, "y": y + (to_y - y) * part / 10, "id": id}
                for id, ((x, y), (to_x, to_y)) in enumerate(paths)
            ]
            await self._send("touchMove" if part else "touchStart", at)
        await self._send("touchEnd", [])

    async def _send(self, kind: str, points: list[dict[str, float]]) -> None:
        await self._session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})


async def test_fingers_on_a_picture(running: RunningApp, visit: OpenPage, shelf: Path) -> None:
    """A swipe goes on and back; two fingers enlarge it, and its pixels show when it is beyond its size.

    The next picture is seen from its top, however far the one before was scrolled.
    """
    viewport = {"width": 360, "height": 740}
    async with (
        running(engine=QuickEngine, output_dir=shelf) as app,
        visit(app.url, "#/gallery", viewport=viewport, has_touch=True) as page,
    ):
        fingers = Fingers(await page.context.new_cdp_session(page))
        await page.locator("#gallery .tile").first.tap()
        prompt, image = page.locator("#viewer-prompt"), page.locator("#viewer-figure > img")
        await expect(image).to_have_js_property("naturalWidth", 512)
        await fingers.move(((300, 150), (100, 160)))
        await expect(prompt).to_have_text("picture 198")
        await fingers.move(((100, 150), (300, 160)))
        await expect(prompt).to_have_text("picture 199")
        await expect(image).to_have_js_property("naturalWidth", 512)
        await expect(image).not_to_have_class("pixelated")
        before = await image.evaluate("(image) => image.clientWidth")
        await fingers.move(((160, 150), (60, 150)), ((200, 150), (300, 150)))
        assert await image.evaluate("(image) => image.clientWidth") > 4 * before
        await expect(image).to_have_class("pixelated")
        await fingers.move(((250, 150), (100, 150)))
        await expect(prompt).to_have_text("picture 199")
        assert await page.locator("#viewer-figure").evaluate("(figure) => figure.scrollLeft") > before
        await fingers.move(((60, 150), (170, 150)), ((300, 150), (180, 150)))
        assert await image.evaluate("(image) => image.clientWidth") == before
        await page.get_by_role("button", name="Copy curl").scroll_into_view_if_needed()
        await page.keyboard.press("Escape")
        await page.locator("#gallery .tile").nth(1).tap()
        await expect(prompt).to_have_text("picture 198")
        await expect(page.locator("#viewer")).to_have_js_property("scrollTop", 0)


async def test_new_pictures_come_by_themselves(running: RunningApp, visit: OpenPage) -> None:
    """And those that somebody else deleted go."""
    async with running(engine=QuickEngine) as app, visit(app.url, "#/gallery", statuses=(404,)) as page:
        await expect(page.locator("#gallery-empty")).to_be_visible()
        _, made = await app.post("/v1/images/generations", prompt="one", size="64x64", steps=1)
        await expect(page.locator("#gallery li")).to_have_count(1)
        async with app.session.delete(made["data"][0]["url"]) as answer:
            assert answer.status == 200
        await app.post("/v1/images/generations", prompt="two", size="64x64", steps=1)
        await expect(page.get_by_role("button", name="Open: two")).to_be_visible()
        await expect(page.locator("#gallery li")).to_have_count(1)


@pytest.mark.parametrize(
    ("view", "place", "shown"),
    [("Gallery", "#gallery-error", "#gallery-empty"), ("Models", "#models-hint", ".model"),
     ("Server", "#server-error", "#lanes .model")],
)  # fmt: skip
async def test_a_view_that_cannot_be_read(
    running: RunningApp, visit: OpenPage, view: str, place: str, shown: str
) -> None:
    """Says so in its place, and comes when told."""
    script = f"**/web/{view.lower()}.js"
    async with running(engine=QuickEngine) as app, visit(app.url, broken_lines=True) as page:
        await ready(page)
        await page.route(script, lambda route: route.abort())
        await page.get_by_role("link", name=view).click()
        await expect(page.locator(place)).to_contain_text("The server is not responding")
        await page.unroute(script)
        await page.locator(place).get_by_role("button", name="Try again").click()
        await expect(page.locator(shown).first).to_be_visible()
        await expect(page.locator(place)).not_to_contain_text("not responding")


async def test_a_gallery_that_cannot_be_read(running: RunningApp, visit: OpenPage) -> None:
    """Says so in its place, and tries again when told; pictures that did not come are fetched again."""
    async with running(engine=QuickEngine) as app, visit(app.url, broken_lines=True) as page:
        await ready(page)
        await app.post("/v1/images/generations", prompt="one", size="64x64", steps=1)
        await expect(page.locator(".picture[data-state=done]")).to_have_count(1)
        await page.route("**/v1/images?*", lambda route: route.abort())
        await page.get_by_role("link", name="Gallery").click()
        await expect(page.locator("#gallery-error")).to_contain_text("The server is not responding")
        await page.unroute("**/v1/images?*")
        await page.route("**/v1/images/files/*", lambda route: route.abort())
        async with page.expect_event("requestfailed"):
            await page.get_by_role("button", name="Try again").click()
        await expect(page.locator("#gallery li")).to_have_count(1)
        await expect(page.locator("#gallery-error")).to_be_empty()
        await page.unroute("**/v1/images/files/*")
        await app.post("/v1/images/generations", prompt="two", size="64x64", steps=1)
        for picture in range(2):
            await expect(page.locator("#gallery img").nth(picture)).to_have_js_property("naturalWidth", 64)
