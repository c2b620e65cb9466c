"""Memory of the page while its gallery is scrolled, in a browser of its own.

Playwright has Chromium keep a copy of all that is fetched: hundreds of megabytes of a large gallery. So the
page scrolls itself here, and DevTools' protocol is spoken for nothing else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import psutil

SCROLL: Final = """
(async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const atEnd = () => scrollY + innerHeight >= document.documentElement.scrollHeight - 2
    && document.querySelector("#gallery li:last-child")?.ariaPosInSet === "PICTURES";
  while (!atEnd()) { scrollBy(0, 400); await pause(100); }
  while (scrollY > 0) { scrollBy(0, -4000); await pause(16); }
})()
"""
"""To the last picture, slowly enough that all come, and back."""
LATER: Final = 10.0
"""Seconds after which pictures that were decoded and are not seen are let go."""


class Tab:
    """The one page of a browser."""

    def __init__(self, process: psutil.Process, socket: aiohttp.ClientWebSocketResponse[Any]) -> None:
        self._process = process
        self._socket = socket

    async def run(self, script: str) -> None:
        parameters = {"expression": script, "awaitPromise": True}
        await self._socket.send_json({"id": 1, "method": "Runtime.evaluate", "params": parameters})
        answer: dict[str, Any] = {}
        while answer.get("id") != 1:
            answer = await self._socket.receive_json()
        if "exceptionDetails" in answer["result"]:
            raise RuntimeError(answer["result"]["exceptionDetails"]["text"])

    def memory(self) -> float:
        """Megabytes that its process alone has, decoded pictures included."""
        children = self._process.children(recursive=True)
        pages = [each for each in children if "--type=renderer" in each.cmdline()]
        return max(float(each.memory_full_info().uss) for each in pages) / 1e6


@asynccontextmanager
async def tab(url: str, folder: Path) -> AsyncIterator[Tab]:
    """A page of a new browser, whose own files go to the folder."""
    flags = ["--headless=new", "--window-size=1280,720", "--remote-debugging-port=0"]
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    quiet = asyncio.subprocess.DEVNULL
    browser = await asyncio.create_subprocess_exec(
        "chromium", *flags, *root, f"--user-data-dir={folder}", url, stdout=quiet, stderr=quiet
    )
    try:
        told = folder / "DevToolsActivePort"
        while not (told.is_file() and told.read_text().count("\n")):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.1)
        port = told.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                page = next(each for each in await answer.json() if each["type"] == "page")
            async with session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(psutil.Process(browser.pid), socket)
    finally:
        browser.terminate()
        await browser.wait()


async def measure(url: str, pictures: int, folder: Path) -> tuple[float, float]:
    """Megabytes after all pictures were scrolled past, at once and a while later."""
    async with tab(f"{url}/#/gallery", folder) as page:
        await asyncio.sleep(LATER)
        await page.run(SCROLL.replace("PICTURES", str(pictures)))
        at_once = page.memory()
        await asyncio.sleep(LATER)
        return at_once, page.memory()
