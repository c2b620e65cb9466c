"""How fast the web page is in a real browser: first use, a step on its way to the screen, heap, scrolling.

The server runs in this process on an engine that only waits: the figures are those of server and page.
They depend on what else the machine does; run it on an idle one: `.venv/bin/python -m scripts.bench.web`,
with names of parts to measure only these: open, steps, heap, gallery.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright

from gguf_imagegen.api.app import make_app
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.pictures import infotext
from gguf_imagegen.settings import Settings
from scripts.bench import gallery_memory
from tests.fake_engines import FakeBackend, QuickEngine

OPENINGS = 10
SLOW = {"offline": False, "latency": 100, "downloadThroughput": 50_000, "uploadThroughput": 50_000}
"""A network of 50 kB/s with 100 ms for the first byte."""
STEPS = 100
GENERATIONS = 200
PICTURES = 5000
DIFFERENT = 20
"""Files of which the pictures are made."""
DEADLINE = 120_000
sent: dict[int, float] = {}
"""Milliseconds of the clock at which the engine told of each step."""

WATCH_READY = """
document.addEventListener("DOMContentLoaded", () => {
  const button = document.querySelector("#generate");
  const look = () => { if (!button.disabled) window.readyAt ??= performance.now(); };
  look();
  new MutationObserver(look)
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
LONG_TASK = 50.0
"""Milliseconds from which one speaks of a long task (W3C's Long Tasks API)."""

AT_END = f"""
scrollY + innerHeight >= document.documentElement.scrollHeight - 2
  && document.querySelector("#gallery li:last-child")?.ariaPosInSet === "{PICTURES}"
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
    files = []
    for number in range(DIFFERENT):
        picture = Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).resize((512, 512))
        text = f"picture {number}\nSteps: 4, Sampler: euler, CFG scale: 1, Seed: 1, Size: 512x512"
        files.append(folder.parent / f"{number}.png")
        picture.save(files[-1], pnginfo=infotext.png_text(text))
    for number in range(PICTURES):
        made = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(minutes=number)
        os.link(files[number % DIFFERENT], folder / f"{made:%Y%m%d-%H%M%S}-{'x' * 24}.png")


async def opening(browser: Browser, url: str, network: dict[str, Any] | None = None) -> float:
    """Milliseconds from the navigation to a form that can be sent, with nothing in the browser's cache."""
    context = await browser.new_context()
    page = await context.new_page()
    await page.add_init_script(WATCH_READY)
    if network:
        session = await context.new_cdp_session(page)
        await session.send("Network.enable")
        await session.send("Network.emulateNetworkConditions", network)
    await page.goto(url)
    await page.wait_for_function("() => window.readyAt > 0")
    ready = float(await page.evaluate("window.readyAt"))
    await context.close()
    return ready


async def generate(page: Page, steps: int) -> None:
    newest = await page.evaluate("document.querySelector('.job[data-newest]')?.dataset.job")
    await page.evaluate("document.querySelector('#more').open = true")
    await page.fill("#steps", str(steps))
    await page.fill("#prompt", "a lighthouse at dusk")
    await page.press("#prompt", "Control+Enter")
    await page.wait_for_function(
        """old => {
            const job = document.querySelector(".job[data-newest]");
            return job && job.dataset.job !== old && job.dataset.status === "succeeded";
        }""",
        arg=newest,
    )  # leaves no handle that holds an element


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


async def scroll(page: Page) -> None:
    """To the end of the gallery, slowly enough that all pictures come, and back to its top."""
    await page.mouse.move(600, 400)
    step = 400
    while await page.evaluate("scrollY > 0 || !window.wasDown"):
        await page.mouse.wheel(0, step)
        await page.wait_for_timeout(100 if step > 0 else 16)
        if await page.evaluate(AT_END):
            await page.evaluate("window.wasDown = true")
            step = -4000


def say(what: str, figures: list[float], unit: str) -> None:
    middle = statistics.median(figures)
    print(f"{what:48} {middle:7.1f} {unit}  ({min(figures):.1f} to {max(figures):.1f}, {len(figures)} times)")


async def measure_opening(browser: Browser, url: str) -> None:
    here = [await opening(browser, url) for _ in range(OPENINGS)]
    say("navigation to a form that can be used", here, "ms")
    slow = [await opening(browser, url, SLOW) for _ in range(OPENINGS)]
    say("the same at 50 kB/s", slow, "ms")


async def measure_steps(browser: Browser, url: str) -> None:
    page = await new_page(browser, url)
    await page.evaluate(WATCH_STEPS)
    await generate(page, STEPS)
    seen = await page.evaluate("window.steps")
    delays = [at - sent[int(step)] for step, at in seen.items()]
    say("step told by the engine to its frame on screen", delays, "ms")
    await page.context.close()


async def measure_heap(browser: Browser, url: str) -> None:
    page = await new_page(browser, url)
    MetronomeEngine.PAUSE = 0.0
    for _ in range(30):  # until old cards go
        await generate(page, 4)
    before = await heap(page)
    for _ in range(GENERATIONS):
        await generate(page, 4)
    after = await heap(page)
    words = f"{before[0]:.2f} to {after[0]:.2f} MB, {before[1]} to {after[1]} nodes"
    print(f"{f'heap over {GENERATIONS} generations in one tab':48} {words}")
    await page.context.close()


async def measure_gallery(browser: Browser, url: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        at_once, later = await gallery_memory.measure(url, PICTURES, Path(folder))
    print(f"{f'memory of the page after {PICTURES} pictures':48} {at_once:7.1f} MB, soon {later:.1f}")
    page = await new_page(browser, f"{url}/#/gallery")
    await page.locator("#gallery img").first.wait_for()
    await page.wait_for_timeout(1000)
    await browser.start_tracing(page=page, categories=["-*", "toplevel", "__metadata"])
    await scroll(page)
    tasks = tasks_of_pages(json.loads(await browser.stop_tracing())["traceEvents"])
    for what, field in {"by the clock": "dur", "of the processor": "tdur"}.items():
        long = [task for task in (each.get(field, 0) / 1000 for each in tasks) if task > LONG_TASK]
        longest = f", the longest {max(long):.0f} ms" if long else ""
        print(f"{f'tasks over 50 ms {what}':48} {len(long):7}{longest}")
    await page.context.close()


def tasks_of_pages(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the pages' main threads did, a task each: `dur` microseconds, of which `tdur` of the processor.

    The format is Chromium's, https://perfetto.dev/docs/getting-started/other-formats.
    """
    names = [each for each in events if each["name"] == "thread_name"]
    mains = {(each["pid"], each["tid"]) for each in names if each["args"]["name"] == "CrRendererMain"}
    runs = [each for each in events if "RunTask" in each["name"] and each["ph"] == "X"]
    return [each for each in runs if (each["pid"], each["tid"]) in mains]


async def new_page(browser: Browser, url: str) -> Page:
    page = await (await browser.new_context()).new_page()
    page.set_default_timeout(DEADLINE)
    await page.goto(url)
    await page.locator("#generate:enabled").wait_for(state="attached")
    return page


PARTS = {"open": measure_opening, "steps": measure_steps, "heap": measure_heap, "gallery": measure_gallery}


async def main(wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill_gallery(folder / "out")
        async with serving(folder) as url, async_playwright() as playwright:
            flags = ["--no-sandbox"] if os.geteuid() == 0 else []
            browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
            for part in wanted or PARTS:
                await PARTS[part](browser, url)
            await browser.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
