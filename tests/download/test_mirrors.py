"""Mirrors of the hub as they are found in the wild: a pull ends right, or with the right word."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.catalog.store import Store
from gguf_imagegen.download.pull import Pull
from gguf_imagegen.vocabulary.errors import HubFailed, PullFailed

DATA = np.random.default_rng(7).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
COMMIT = "a" * 40
SOURCE = Source(repo="org/model", file="m.gguf")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Mirror:
    """Answers for any path with the one file; `mode` is what it gets wrong."""

    def __init__(self, mode: str, url: str = "") -> None:
        self.mode = mode
        self.elsewhere = url
        self.asked: list[tuple[str, str, str | None, str | None]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers, mode, ranged = request.headers, self.mode, request.headers.get("Range")
        self.asked.append((request.method, request.path, ranged, headers.get("Authorization")))
        if (place := self._place(request)) is not None:
            return web.Response(status=308 if mode == "abs308" else 307, headers={"Location": place})
        stated = {"X-Repo-Commit": COMMIT, "ETag": f'"{SHA}"'}
        if mode == "weak":
            stated["ETag"] = f'W/"{SHA}"'
        if mode == "html" and request.method == "GET":
            return web.Response(text="<html>Log in</html>", content_type="text/html", headers=stated)
        if request.method == "HEAD":
            size = {"size 0": "0", "no size": ""}.get(mode, str(len(DATA)))
            return web.Response(headers=stated | ({"X-Linked-Size": size} if size else {}))
        if ranged and mode == "416":
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(DATA)}"})
        if not ranged or mode == "no ranges":
            return web.Response(body=DATA, headers=stated)
        first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", ranged).groups()  # type: ignore[union-attr]
        start, end = int(first), int(last or len(DATA) - 1)
        part = f"bytes {start if mode != 'shifted' else 0}-{end}/{len(DATA)}"
        return web.Response(status=206, body=DATA[start : end + 1], headers=stated | {"Content-Range": part})

    def _place(self, request: web.Request) -> str | None:
        """Where this request is sent on to."""
        if self.mode == "relative" and not request.path.startswith("/final"):
            return f"/final{request.path}?sig=1"
        if self.mode == "renamed" and request.path.startswith("/org/"):
            return request.path.replace("/org/", "/new/")
        return f"{self.elsewhere}{request.path}" if self.mode == "abs308" else None


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    """Start a server: `await start(handler)` is its address."""
    servers: list[TestServer] = []

    async def starting(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        servers.append(TestServer(app))
        await servers[-1].start_server()
        return str(servers[-1].make_url("")).rstrip("/")

    yield starting
    for server in servers:
        await server.close()


Start = Callable[[Handler], Awaitable[str]]


async def pulled(folder: Path, arrived: int = 0) -> bytes:
    """Pull the file, of which so many bytes had come before."""
    store = Store(folder)
    if arrived:
        partial = store.make_room_for(store.beside(SOURCE.path, f"{SHA[:16]}.partial"))
        partial.write_bytes(DATA[:arrived])
    await asyncio.to_thread(Pull(store, [SOURCE], lambda event: None, pause=0.001).run)
    return store.path(SOURCE.path).read_bytes()


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.mark.parametrize(
    "mode", ["plain", "relative", "renamed", "size 0", "no size", "416", "no ranges", "weak"]
)
@pytest.mark.parametrize("arrived", [0, 100_000])
async def test_a_pull_ends_right(
    mode: str, arrived: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the start and resumed; what cannot be resumed begins anew."""
    mirror = Mirror(mode)
    monkeypatch.setenv("HF_ENDPOINT", await start(mirror.handle))
    assert await pulled(tmp_path, arrived) == DATA
    assert {token for *_, token in mirror.asked} == {"Bearer hf_secret"}


async def test_a_hub_that_has_moved(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror that sends everybody to another host is followed, and the token is not."""
    other = Mirror("plain")
    first = Mirror("abs308", await start(other.handle))
    monkeypatch.setenv("HF_ENDPOINT", await start(first.handle))
    assert await pulled(tmp_path, 100_000) == DATA
    assert {token for *_, token in other.asked} == {None}


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("html", PullFailed, "m.gguf: a web page came instead of the file; check HF_ENDPOINT"),
        ("shifted", HubFailed, "m.gguf: the hub sends another part of the file"),
    ],
)
async def test_a_pull_ends_with_the_right_word(
    mode: str,
    error: type[PullFailed],
    words: str,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A login page is no damaged file, and is asked for once; what had arrived stays."""
    mirror = Mirror(mode)
    monkeypatch.setenv("HF_ENDPOINT", await start(mirror.handle))
    with pytest.raises(error) as caught:
        await pulled(tmp_path, 100_000)
    assert type(caught.value) is error
    assert words in str(caught.value)
    assert sum(method == "GET" for method, *_ in mirror.asked) == (1 if mode == "html" else 5)
    assert Store(tmp_path).state(SOURCE) == "partial"
