"""A real browser on the web page: what it complains about, and what leaves the server, fails the test."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, Request, async_playwright, expect

from gguf_imagegen.commands.testmodel import write_test_model
from tests.conftest import DEADLINE, ServerProcess
from tests.weights import write_lora, write_upscaler

MS = DEADLINE * 1000
expect.set_options(timeout=MS)
AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
RECORDER = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(event.violatedDirective + " " + event.blockedURI);
});
"""


@pytest_asyncio.fixture(scope="package")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium; without a window's parts it takes two thirds of the time."""
    chromium = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    assert chromium, "please install chromium-headless-shell"
    async with async_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=chromium, args=flags)
        yield browser
        await browser.close()


@dataclass
class Watched:
    """What a page did that it must not do; `statuses` are refusals that a test provokes."""

    origin: str
    statuses: tuple[int, ...] = ()
    broken_lines: bool = False
    """Whether the test breaks connections, which the browser reports."""
    faults: list[str] = field(default_factory=list)

    def on_console(self, kind: str, text: str) -> None:
        if kind not in ("error", "warning"):
            return
        if self.broken_lines and "net::ERR_" in text:
            return
        status = re.search(r"responded with a status of (\d+)", text)
        if not (status and int(status[1]) in self.statuses):
            self.faults.append(f"{kind}: {text}")

    def on_request(self, url: str) -> None:
        if urlsplit(url).scheme in ("http", "https", "ws", "wss") and not url.startswith(f"{self.origin}/"):
            self.faults.append(f"request to {url}")


OpenPage = Callable[..., AbstractAsyncContextManager[Page]]


@pytest.fixture
def visit(browser: Browser) -> OpenPage:
    """`async with visit(url, "#/gallery", statuses=(401,), viewport=…) as page`, in a browser of its own."""

    @contextlib.asynccontextmanager
    async def open_page(
        url: str,
        view: str = "",
        *,
        statuses: tuple[int, ...] = (),
        broken_lines: bool = False,
        **options: Any,
    ) -> AsyncIterator[Page]:
        context = await browser.new_context(base_url=url, **{"reduced_motion": "reduce", **options})
        watched = Watched(url, statuses, broken_lines)
        context.on("console", lambda message: watched.on_console(message.type, message.text))
        context.on("weberror", lambda error: watched.faults.append(f"exception: {error.error}"))
        context.on("request", lambda request: watched.on_request(request.url))
        await context.add_init_script(RECORDER)
        page = await context.new_page()
        page.set_default_timeout(MS)
        await page.goto(f"{url}/{view}")
        try:
            yield page
            for each in context.pages:
                watched.faults += await each.evaluate("window.violations ?? []")
        finally:
            await context.close()
        assert watched.faults == []

    return open_page


@pytest.fixture(scope="package")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The embedded model, and LoRAs, upscalers and a model of several references beside it."""
    models, loras, upscalers = (tmp_path_factory.mktemp(name) for name in ("models", "loras", "upscalers"))
    write_lora(loras / "watercolour.gguf")
    write_upscaler(upscalers / "double.gguf", 2)
    catalog = write_references(models)
    process = ServerProcess(
        models, "--model", "embedded", "--catalog", str(catalog), "--grace", "1",
        "--lora-dir", str(loras), "--upscaler-dir", str(upscalers), "--heartbeat", "1",
    )  # fmt: skip
    process.wait_until_ready()
    yield process
    process.stop()


def write_references(models: Path) -> Path:
    """A catalog with the tiny model as one that edits by three references."""
    write_test_model(models)
    entry = {
        "family": "ovis-image",
        "files": {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"},
        "edits": "reference",
        "limits": {"references": 3},
        "capabilities": ["text-to-image", "reference-edit"],
        "defaults": {"size": "128x128", "steps": 2},
    }
    path = models / "references.yaml"
    path.write_text(json.dumps({"version": 1, "models": {"by-reference": entry}}))
    return path


async def ready(page: Page) -> None:
    """The form knows its models, and shows all that it has."""
    await expect(page.locator("#generate")).to_be_enabled()
    await unfold(page)


async def unfold(page: Page) -> None:
    """Show the settings that are folded away."""
    await page.evaluate("document.querySelector('#more').open = true")


def newest_job(page: Page) -> Locator:
    """The card of the newest job, which an older one that runs may precede."""
    return page.locator(".job[data-newest]")


async def generate(page: Page, prompt: str, **fields: object) -> None:
    """Fill in the form, send it with Ctrl+Enter, and wait for the new card."""
    await ready(page)
    for name, value in {"prompt": prompt, **fields}.items():
        await page.fill(f"#{name}", str(value))
    await send(page)


async def send(page: Page) -> None:
    """Send the form as it is, and wait for the new card."""
    before = await page.evaluate("document.querySelector('.job[data-newest]')?.dataset.job ?? ''")
    await page.press("#prompt", "Control+Enter")
    await page.wait_for_function(
        "before => !['', before].includes(document.querySelector('.job[data-newest]')?.dataset.job ?? '')",
        arg=before,
    )


async def settled(page: Page) -> None:
    """The newest job has ended, and none goes on."""
    await expect(newest_job(page)).to_be_attached()
    going = page.locator(".job[data-status=queued], .job[data-status=running]")
    await expect(going).to_have_count(0, timeout=3 * MS)
    await expect(page.locator("#activity")).to_be_hidden(timeout=3 * MS)


def asks(request: Request) -> bool:
    """Whether this request is for a picture, and not for what one costs."""
    path = urlsplit(request.url).path
    wanted = path.endswith(("/v1/images/generations", "/v1/images/edits"))
    return wanted and '"dry_run":true' not in (request.post_data or "")


async def weigh(page: Page, lora: str, weight: float) -> None:
    """Choose a LoRA, which was not chosen yet, and its weight."""
    await page.click("#lora-add")
    await page.locator("#picker-list button", has_text=lora).click()
    await page.get_by_label(f"Weight of {lora}").fill(str(weight))


async def check_accessible(page: Page) -> None:
    """No rule of axe-core is broken by what is to be seen now."""
    await page.evaluate(AXE)
    results = await page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    found = [
        f"{rule['id']}: {node['html'][:200]} — {node['failureSummary'][:300]}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]
    assert found == []


async def fits_across(page: Page) -> bool:
    """Whether nothing makes the page scroll sideways."""
    return bool(await page.evaluate("document.documentElement.scrollWidth <= innerWidth"))
