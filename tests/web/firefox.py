"""Debian's Firefox without a driver beside it: it speaks WebDriver BiDi itself, JSON over a WebSocket.

https://w3c.github.io/webdriver-bidi/
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.conftest import DEADLINE

PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "remote.active-protocols": 1,
    "ui.prefersReducedMotion": 1,
}
KEYS = {"Enter": "\ue007", "Control": "\ue009", "Escape": "\ue00c", "ArrowRight": "\ue014"}


class FirefoxPage:
    """One page, and what its console complained of."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        self._socket = socket
        self._count = 0
        self._context = ""
        self.faults: list[str] = []

    async def begin(self) -> None:
        await self._send("session.new", capabilities={})
        await self._send("session.subscribe", events=["log.entryAdded"])
        self._context = (await self._send("browsingContext.getTree"))["contexts"][0]["context"]

    async def go(self, url: str) -> None:
        await self._send("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """What an expression, or what it promises, comes to, as JSON has it."""
        text = f"(async () => JSON.stringify(await ({expression})) ?? 'null')()"
        where = {"context": self._context}
        told = await self._send("script.evaluate", expression=text, target=where, awaitPromise=True)
        assert told["type"] == "success", told
        return json.loads(told["result"]["value"])

    async def until(self, expression: str) -> None:
        """Wait until the page has it so."""
        look = f"const look = () => ({expression}) ? done(true) : setTimeout(look, 20)"
        words = f"new Promise((done) => {{ {look}; look(); }})"
        await asyncio.wait_for(self.evaluate(words), DEADLINE)

    async def click(self, selector: str) -> None:
        """The middle of what is seen under this selector, once it is there."""
        await self.until(f"document.querySelector({selector!r})?.checkVisibility()")
        x, y = await self.evaluate(
            f"""(() => {{
                const element = document.querySelector({selector!r});
                element.scrollIntoView({{block: "center"}});
                const {{x, y, width, height}} = element.getBoundingClientRect();
                return [Math.round(x + width / 2), Math.round(y + height / 2)];
            }})()"""
        )
        button = [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        mouse = {
            "type": "pointer",
            "id": "mouse",
            "actions": [{"type": "pointerMove", "x": x, "y": y}, *button],
        }
        await self._send("input.performActions", context=self._context, actions=[mouse])

    async def press(self, *keys: str) -> None:
        """Keys that go down together, or a text letter by letter."""
        named = [KEYS.get(key, key) for key in keys]
        down, up = (
            [{"type": "keyDown", "value": key} for key in named],
            [{"type": "keyUp", "value": key} for key in reversed(named)],
        )
        board = {"type": "key", "id": "keyboard", "actions": [*down, *up]}
        await self._send("input.performActions", context=self._context, actions=[board])

    async def _send(self, method: str, **params: Any) -> Any:
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        while True:
            told = json.loads((await self._socket.receive(DEADLINE)).data)
            if told["type"] == "event":
                self._heard(told["params"])
            elif told["id"] == self._count:
                assert told["type"] == "success", told
                return told["result"]

    def _heard(self, entry: dict[str, Any]) -> None:
        if entry.get("level") in ("warn", "error"):
            self.faults.append(str(entry.get("text")))


@asynccontextmanager
async def firefox(profile: Path) -> AsyncIterator[FirefoxPage]:
    """A new one without a window, with a profile of its own."""
    program = shutil.which("firefox-esr")
    assert program, "please install firefox-esr"
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("".join(lines))
    process = await asyncio.create_subprocess_exec(
        program, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    draining = None
    try:
        assert process.stderr is not None
        url = await asyncio.wait_for(_address(process.stderr), DEADLINE)
        draining = asyncio.create_task(process.stderr.read())
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/session", max_msg_size=0) as socket,
        ):
            page = FirefoxPage(socket)
            await page.begin()
            yield page
    finally:
        process.terminate()
        await process.wait()
        if draining:
            await draining


async def _address(stderr: asyncio.StreamReader) -> str:
    told = b""
    while line := await stderr.readline():
        told += line
        if found := re.search(rb"BiDi listening on (ws://\S+)", line):
            return found[1].decode()
    raise AssertionError(f"Firefox did not start: {told.decode(errors='replace')}")
