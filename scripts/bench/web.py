"""How fast the web page is in a real browser: first use, a step on its way to the screen, heap, scrolling.

The server runs in this process on an engine that only waits: the figures are those of server and page.
They depend on what else the machine does; run it on an idle one: `.venv/bin/python -m scripts.bench.web`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image
from playwright.async_api import Page, async_playwright

from gguf_imagegen.api.app import make_app
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.pictures import infotext
from gguf_imagegen.settings import Settings
from tests.fake_engines import FakeBackend, QuickEngine

OPENINGS = 10
STEPS = 100
GENERATIONS = 100
PICTURES = 200
DEADLINE = 120_000
sent: dict[int, float] = {}
"""Milliseconds of the clock at which the engine told of each step."""

WATCH_READY = """
document.addEventListener("DOMContentLoaded", () => {
  const button = document.querySelector("#generate");
  new MutationObserver(() => { if (!button.disabled) window.readyAt ??= performance.now(); })
    .observe(button, {attributes: true});
});
"""
WATCH_STEPS = """
window.steps = {};
new MutationObserver(() => {
  const [, step] = document.querySelector(".job .state")?.textContent.match(/step (\\d+)/) ?? [];
  if (step && !(step in window.steps)) requestAnimationFrame(() => {
    window.steps[step] ??= performance.timeOrigin + performance.now();
  });
}).observe(document.querySelector("#jobs"), {subtree: true, childList: true, characterData: true});
"""
WATCH_LONG_TASKS = """
window.tasks = [];
new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((entry) => entry.duration)))
  .observe({type: "longtask"});
"""


class MetronomeEngine(QuickEngine):
    """A step every twentieth of a second, with the time of each."""

    PAUSE = 0.05

    async def at_step(self, step: int) -> None:
        await self.pause(self.PAUSE)
        sent[step] = time.time() * 1000


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[str]:
    write_test_model(folder)
    settings = Settings(models_dir=folder, model="tiny-random", threads=1, output_dir=folder / "out")
    catalog, default = choose_models(settings)
    runner = web.AppRunner(
        make_app(settings, catalog, default, FakeBackend(settings, MetronomeEngine)), access_log=None
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def fill_gallery(folder: Path) -> None:
    """Pictures of the size that most models make."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(PICTURES):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).resize((512, 512))
        name = f"20260101-{number // 60:02}{number % 60:02}00-{'x' * 24}.png"
        text = f"picture {number}\nSteps: 4, Sampler: euler, CFG scale: 1, Seed: 1, Size: 512x512"
        picture.save(folder / name, pnginfo=infotext.png_text(text))


async def open_page(page: Page, url: str) -> float:
    """Milliseconds from the navigation to a form that can be sent."""
    await page.goto(url)
    await page.wait_for_function("() => window.readyAt > 0")
    return float(await page.evaluate("window.readyAt"))


async def generate(page: Page, steps: int) -> None:
    newest = await page.evaluate("document.querySelector('.job')?.dataset.job")
    await page.fill("#steps", str(steps))
    await page.fill("#prompt", "a lighthouse at dusk")
    await page.press("#prompt", "Control+Enter")
    await page.wait_for_function("id => document.querySelector('.job')?.dataset.job !== id", arg=newest)
    await page.locator(".job:first-child[data-status=succeeded]").wait_for()  # leaves no handle that holds it


async def heap(page: Page) -> tuple[float, int]:
    """Megabytes in use after a collection, and nodes."""
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable")
    for _ in range(3):
        await session.send("HeapProfiler.collectGarbage")
    metrics: list[dict[str, Any]] = (await session.send("Performance.getMetrics"))["metrics"]
    values = {metric["name"]: metric["value"] for metric in metrics}
    await session.detach()
    return values["JSHeapUsedSize"] / 1e6, int(values["Nodes"])


async def scroll(page: Page, url: str) -> list[float]:
    """Durations of all tasks over 50 ms while the whole gallery is scrolled through."""
    await page.goto(f"{url}/#gallery")
    await page.locator("#gallery img").first.wait_for()
    await page.wait_for_timeout(1000)
    await page.evaluate(WATCH_LONG_TASKS)
    await page.mouse.move(600, 400)
    while await page.locator("#gallery li").count() < PICTURES:
        await page.mouse.wheel(0, 400)
        await page.wait_for_timeout(16)
    for _ in range(100):
        await page.mouse.wheel(0, 400)
        await page.wait_for_timeout(16)
    return list(await page.evaluate("window.tasks"))


def say(what: str, figures: list[float], unit: str) -> None:
    middle = statistics.median(figures)
    print(f"{what:48} {middle:7.1f} {unit}  ({min(figures):.1f} to {max(figures):.1f}, {len(figures)} times)")


async def measure(url: str, page: Page) -> None:
    openings = [await open_page(page, url) for _ in range(OPENINGS)]
    say("navigation to a form that can be used", openings, "ms")
    await page.evaluate(WATCH_STEPS)
    await generate(page, STEPS)
    seen = await page.evaluate("window.steps")
    delays = [at - sent[int(step)] for step, at in seen.items()]
    say("step told by the engine to its frame on screen", delays, "ms")
    MetronomeEngine.PAUSE = 0.0
    for _ in range(30):  # until old cards go
        await generate(page, 4)
    before = await heap(page)
    for _ in range(GENERATIONS):
        await generate(page, 4)
    after = await heap(page)
    words = f"{before[0]:.2f} to {after[0]:.2f} MB, {before[1]} to {after[1]} nodes"
    print(f"{'heap over 100 generations in one tab':48} {words}")
    tasks = await scroll(page, url)
    longest = f", the longest {max(tasks):.0f} ms" if tasks else ""
    print(f"{'tasks over 50 ms, scrolling 200 pictures':48} {len(tasks):7}{longest}")


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_gallery(folder / "out")
        async with serving(folder) as url, async_playwright() as playwright:
            flags = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            page = await browser.new_page()
            page.set_default_timeout(DEADLINE)
            await page.add_init_script(WATCH_READY)
            await measure(url, page)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main())
