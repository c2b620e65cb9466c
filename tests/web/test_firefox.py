"""The page in Firefox: a picture from the keyboard, and every view as axe-core sees it. Runs with `--all`."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import RunningApp
from tests.fake_engines import QuickEngine
from tests.web.conftest import AXE
from tests.web.firefox import FirefoxPage, firefox

VIEWS = {
    "create": "#stage img",
    "gallery": "#gallery img",
    "models": ".model",
    "server": "#log li, #lanes .model",
}


async def broken_rules(page: FirefoxPage) -> list[str]:
    await page.evaluate(f"(() => {{ {AXE} ; return true; }})()")
    return list(
        await page.evaluate(
            "axe.run(document, {resultTypes: ['violations']}).then(({violations}) =>"
            " violations.flatMap(({id, nodes}) => nodes.map(({html}) => `${id}: ${html}`)))"
        )
    )


async def test_the_page_in_firefox(running: RunningApp, tmp_path: Path) -> None:
    """It generates, shows, goes through its views, and complains of nothing."""
    (tmp_path / "profile").mkdir()
    async with running(engine=QuickEngine) as app, firefox(tmp_path / "profile") as page:
        await page.go(app.url)
        await page.until("document.querySelector('#generate').disabled === false")
        for prompt in ("a cat", "a dog"):
            await page.click("#prompt")
            await page.evaluate("(document.querySelector('#prompt').select(), true)")
            for letter in prompt:
                await page.press(letter)
            await page.press("Control", "Enter")
            words = f'.job[data-newest][aria-label="{prompt}"] .picture[data-state=done] img'
            await page.until(f"document.querySelector('{words}')?.naturalWidth > 0")
        for view, there in VIEWS.items():
            await page.click(f'nav a[href="#/{view}"]')
            await page.until(f"document.querySelector('#view-{view} :is({there})')?.checkVisibility()")
            assert await broken_rules(page) == [], view
        await page.click('nav a[href="#/gallery"]')
        await page.click("#gallery li:first-child .tile")
        await page.until("document.querySelector('#viewer-prompt').textContent === 'a dog'")
        await page.press("ArrowRight")
        await page.until("document.querySelector('#viewer-prompt').textContent === 'a cat'")
        assert await broken_rules(page) == []
        await page.press("Escape")
        await page.until("!document.querySelector('#viewer').open")
        assert page.faults == []
