"""Keys, lost connections, restarts, and a page that keeps to its own server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from playwright.async_api import expect

from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import QuickEngine
from tests.web.conftest import OpenPage, check_accessible, fits_across, generate, newest_job, ready, settled

KEY = "a-secret-key"


async def test_a_keyed_server(running: RunningApp, visit: OpenPage) -> None:
    """The key is asked for once, a wrong one again; it stays in this tab, and is in no address."""
    addresses = []
    async with running(engine=QuickEngine, api_key=(KEY,)) as app, visit(app.url, statuses=(401,)) as page:
        page.on("request", lambda request: addresses.append(request.url))
        await expect(page.locator("#key")).to_be_visible()
        await check_accessible(page)
        for _ in range(4):
            await page.keyboard.press("Escape")
        await page.evaluate("document.querySelector('#key').close()")
        await expect(page.locator("#key")).to_be_visible()
        await page.fill("#key-value", "wrong")
        await page.get_by_role("button", name="Continue").click()
        await expect(page.locator("#key-error")).to_have_text("Wrong key.")
        await page.fill("#key-value", KEY)
        await page.press("#key-value", "Enter")
        await generate(page, "a cat", steps=2)
        await settled(page)
        await expect(page.locator(".job .picture[data-state=done] img")).to_have_js_property("complete", True)
        await page.reload()
        await ready(page)
        await expect(page.locator("#key")).to_be_hidden()
        await expect(page.locator(".job")).to_have_count(1)
        await page.locator(".job .tile").click()
        await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await page.get_by_role("button", name="Copy curl").click()
        await expect(page.locator("#toasts")).to_contain_text("Command copied")
        command = await page.evaluate("navigator.clipboard.readText()")
        assert "Bearer $KEY" in command
        await page.get_by_role("button", name="Close").click()
        await page.set_viewport_size({"width": 360, "height": 740})
        assert await fits_across(page)
        await page.get_by_role("button", name="Forget key").click()
        await expect(page.locator("#key")).to_be_visible()
        assert await page.evaluate("sessionStorage.getItem('imagegen.key')") is None
        assert not any(KEY in address for address in addresses)


async def test_a_key_is_remembered_when_wanted(running: RunningApp, visit: OpenPage) -> None:
    """In this tab alone, or with the box ticked in every tab of this browser, until it is forgotten."""
    async with running(engine=QuickEngine, api_key=(KEY,)) as app, visit(app.url, statuses=(401,)) as page:
        for ticked in (False, True):
            await page.fill("#key-value", KEY)
            await page.set_checked("#key-remember", ticked)
            await page.press("#key-value", "Enter")
            await ready(page)
            assert ticked == bool(await page.evaluate("localStorage.getItem('imagegen.key')"))
            other = await page.context.new_page()
            await other.goto(app.url)
            await (ready(other) if ticked else expect(other.locator("#key")).to_be_visible())
            await other.close()
            await page.get_by_role("button", name="Forget key").click()
            await expect(page.locator("#key")).to_be_visible()
        await page.reload()
        await expect(page.locator("#key")).to_be_visible()
        await check_accessible(page)


async def test_the_server_stops_and_comes_back(
    serve: Callable[..., ServerProcess], tmp_path: Path, visit: OpenPage
) -> None:
    """The page says that it is reconnecting, then goes on by itself; what was lost is said."""
    flags = ("--output-dir", str(tmp_path), "--grace", "0")
    server = serve(*flags)
    server.wait_until_ready()
    async with visit(server.url, statuses=(404,), broken_lines=True) as page:
        await generate(page, "kept", steps=2)
        await settled(page)
        await generate(page, "lost", steps=150)
        await expect(newest_job(page).locator(".picture[data-state=preview]")).to_be_visible()
        server.stop()
        await expect(page.locator("#connection")).to_contain_text("Reconnecting…")
        await check_accessible(page)
        await page.press("#prompt", "Control+Enter")
        await expect(page.locator("#create-error")).to_contain_text("The server is not responding")
        await expect(page.locator("#connection")).to_contain_text("This page may be out of date")
        again = serve(*flags, "--port", server.url.rsplit(":", 1)[1])
        assert again.url == server.url
        await expect(page.locator("#connection")).to_be_empty()
        await expect(page.locator("#create-error")).to_be_empty()
        await expect(newest_job(page).locator(".error")).to_contain_text("The server restarted")
        await generate(page, "new", steps=2)
        await settled(page)
        await expect(newest_job(page)).to_have_attribute("data-status", "succeeded")
        await page.get_by_role("link", name="Gallery").click()
        await expect(page.locator("#gallery li")).to_have_count(2)


async def test_a_job_told_late(running: RunningApp, visit: OpenPage) -> None:
    """Jobs that ended before the page was opened are there, and none looks unfinished."""
    async with running(engine=QuickEngine) as app:
        for seed in range(3):
            await app.post("/v1/images/generations", prompt=f"cat {seed}", size="64x64", steps=1)
        async with visit(app.url) as page:
            await expect(page.locator(".job[data-status=succeeded]")).to_have_count(3)
            await expect(newest_job(page)).to_contain_text("cat 2")


async def test_a_wish_that_nobody_hears(serve: Callable[..., ServerProcess], visit: OpenPage) -> None:
    """Is said on the model's card at once, and no longer when the server is back."""
    server = serve("--model", "embedded")
    server.wait_until_ready()
    async with visit(server.url, "#/models", broken_lines=True) as page:
        card = page.locator("[data-model=glyph-128]")
        await expect(card.locator(".badge")).to_have_text("In memory")
        server.process.kill()
        server.stop()
        await card.get_by_role("button", name="Unload glyph-128").click()
        await expect(card.locator(".error")).to_contain_text("The server is not responding")
        serve("--model", "embedded", "--port", server.url.rsplit(":", 1)[1])
        await expect(page.locator("#connection")).to_be_empty()
        await expect(card.locator(".error")).to_have_count(0)
