"""The page with the key of one who is no admin."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import expect

from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine
from tests.web.conftest import OpenPage, check_accessible, generate, settled


async def test_models_without_rights(running: RunningApp, visit: OpenPage, tmp_path: Path) -> None:
    """Pictures are made; the models show, without buttons that would be refused, and the page says why."""
    callers = tmp_path / "callers.yaml"
    callers.write_text("[{name: ann, key: ann-key}, {name: root, key: root-key, admin: true}]")
    callers.chmod(0o600)
    async with (
        running(engine=QuickEngine, callers=callers) as app,
        visit(app.url, statuses=(401,)) as page,
    ):
        await page.fill("#key-value", "ann-key")
        await page.press("#key-value", "Enter")
        await generate(page, "a cat", steps=2)
        await settled(page)
        await page.goto(f"{app.url}/#/models")
        await expect(page.locator("#models-rights")).to_be_visible()
        await expect(page.locator("[data-model=tiny-random]")).to_be_visible()
        await expect(page.locator("#models button")).to_have_count(0)
        await check_accessible(page)
        await page.get_by_role("link", name="Server").click()
        await expect(page.locator("#lanes .model").first).to_be_visible()
        await expect(page.locator("#log-part")).to_be_hidden()
        await page.goto(f"{app.url}/#/models")
        await page.evaluate("sessionStorage.setItem('imagegen.key', '\"root-key\"')")
        await page.reload()
        await expect(page.locator("#models button").first).to_be_visible()
        await expect(page.locator("#models-rights")).to_be_hidden()
        await page.goto(f"{app.url}/#/create")
        await expect(page.locator(".job")).to_have_count(1)
