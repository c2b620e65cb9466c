"""Headers read from web servers: as few bytes as possible, and no lie or delay of a server does harm."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import huggingface_hub
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.hub import HuggingFace
from gguf_imagegen.download.remote import FIRST_WINDOW, MOST_BYTES, remote_header
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.vocabulary.errors import (
    HubFailed,
    HubFileNotFound,
    HubOffline,
    HubRepositoryNotFound,
    HubRevisionNotFound,
    HubTimeout,
    HubTokenInvalid,
    HubTokenMissing,
    HubUnreachable,
    ImagegenError,
    InvalidModelFile,
    InvalidRequest,
    LicenceNotAccepted,
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Start = Callable[[Handler], Awaitable[str]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Start servers of one handler for all paths: `await start(handler)` is its address."""
    servers: list[TestServer] = []

    async def starting(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield starting
    for server in servers:
        await server.close()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The environment and the login of this machine have no say; what would go to the hub goes nowhere."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


def serve(path: Path, asked: list[str]) -> Handler:
    """A server that knows ranges; `asked` gets those that it sends."""

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range", ""))
        return web.FileResponse(path)

    return handle


def read(url: str, deadline: float = 20) -> Awaitable[object]:
    return asyncio.to_thread(remote_header, url, deadline)


def long_header(path: Path, *, texts: list[int], numbers: int = 0) -> None:
    """A GGUF of 10 GB, all holes, whose metadata has texts of these lengths and an array of numbers."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 1, 2))
        file.write(struct.pack("<Q1sIIQ", 1, b"n", 9, 6, numbers))
        file.seek(4 * numbers, 1)
        file.write(struct.pack("<Q1sIIQ", 1, b"t", 9, 8, len(texts)))
        for length in texts:
            file.write(struct.pack("<Q", length))
            file.seek(length, 1)
        file.write(struct.pack("<Q1sIQQIQ", 1, b"w", 2, 1 << 20, 1000, 0, 0))
        file.truncate(10_000_000_000)


async def test_one_request_is_enough(start: Start, model_dir: Path) -> None:
    """What is read from the web is what is read from the disk; the first megabyte has it all."""
    path, asked = model_dir / "tiny-random.gguf", list[str]()
    address = await start(serve(path, asked))
    assert await read(f"{address}/some/where/tiny-random.gguf?download=true") == read_header(path)
    assert asked == [f"bytes=0-{FIRST_WINDOW - 1}"]


async def test_safetensors(start: Start, tmp_path: Path) -> None:
    """The other format is told by the name in the address."""
    path = tmp_path / "x.safetensors"
    content = b'{"w": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}'
    path.write_bytes(struct.pack("<Q", len(content)) + content + b"12")
    assert await read(f"{await start(serve(path, []))}/x.safetensors") == read_header(path)


async def test_a_long_header_is_read_in_growing_parts(start: Start, tmp_path: Path) -> None:
    """Lists of texts are read on and on, in parts that double; of 10 GB no more than the header."""
    path, asked = tmp_path / "long.gguf", list[str]()
    long_header(path, texts=[1 << 20] * 5)
    assert await read(f"{await start(serve(path, asked))}/long.gguf") == read_header(path)
    ends = [part.removeprefix("bytes=").split("-") for part in asked]
    assert [int(last) - int(first) + 1 for first, last in ends] == [1 << 20, 2 << 20, 4 << 20]


async def test_arrays_of_numbers_are_skipped(start: Start, tmp_path: Path) -> None:
    """Eight megabytes of scores are not fetched: the next part begins behind them."""
    path, asked = tmp_path / "long.gguf", list[str]()
    long_header(path, texts=[], numbers=2_000_000)
    assert await read(f"{await start(serve(path, asked))}/long.gguf") == read_header(path)
    assert len(asked) == 2
    assert int(asked[1].removeprefix("bytes=").split("-")[0]) > 8_000_000


async def test_a_header_without_end_is_given_up(start: Start, tmp_path: Path) -> None:
    """A list of 100 MB of texts is no header: at the limit nothing more is asked for."""
    path, asked = tmp_path / "endless.gguf", list[str]()
    long_header(path, texts=[1 << 20] * 100)
    address = await start(serve(path, asked))
    with pytest.raises(InvalidModelFile, match=r"endless\.gguf: its header does not end within 64 MiB"):
        await read(f"{address}/endless.gguf")
    ends = [part.removeprefix("bytes=").split("-") for part in asked]
    assert sum(int(last) - int(first) + 1 for first, last in ends) <= MOST_BYTES


async def test_a_server_that_refuses_every_range(start: Start, model_dir: Path) -> None:
    """One that answers 416 and names the size is asked for the file."""
    path, asked = model_dir / "tiny-random.gguf", list[str | None]()

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Range"))
        if asked[-1]:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{path.stat().st_size}"})
        return web.FileResponse(path)

    assert await read(f"{await start(handle)}/tiny-random.gguf") == read_header(path)
    assert asked == [f"bytes=0-{FIRST_WINDOW - 1}", None]


def ignorant(path: Path, sent: list[int]) -> Handler:
    """A server that sends the whole of a file whatever it is asked for, and counts what it could send."""

    async def handle(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": str(path.stat().st_size)})
        await answer.prepare(request)
        with path.open("rb") as file:
            while piece := file.read(1 << 18):
                await answer.write(piece)
                sent.append(len(piece))
        return answer

    return handle


@pytest.mark.parametrize("texts", [0, 3])
async def test_a_server_that_ignores_ranges_is_hung_up_on(texts: int, start: Start, tmp_path: Path) -> None:
    """Of the 10 GB that it would send it can send some megabytes, and the header is known all the same."""
    path, sent = tmp_path / "long.gguf", list[int]()
    long_header(path, texts=[1 << 20] * texts)
    address = await start(ignorant(path, sent))
    assert await read(f"{address}/long.gguf") == read_header(path)
    assert sum(sent) < 40 << 20


async def test_a_server_that_ignores_ranges_need_not_skip_for_us(start: Start, tmp_path: Path) -> None:
    """A header that would have to be read from the start again and again ends at the same limit."""
    path, sent = tmp_path / "long.gguf", list[int]()
    long_header(path, texts=[1 << 20] * 60)
    address = await start(ignorant(path, sent))
    with pytest.raises(InvalidModelFile):
        await read(f"{address}/long.gguf")
    assert sum(sent) < MOST_BYTES + (60 << 20)


async def test_the_token_goes_to_the_hub_alone(
    start: Start, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the hub redirects to sees no token, a renamed repository on the hub itself does."""
    path, seen = model_dir / "tiny-random.gguf", list[tuple[str, str | None]]()

    async def store(request: web.Request) -> web.StreamResponse:
        seen.append(("store", request.headers.get("Authorization")))
        assert request.headers["Range"] == f"bytes=0-{FIRST_WINDOW - 1}"
        return web.FileResponse(path)

    elsewhere = await start(store)

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append((request.path, request.headers.get("Authorization")))
        if request.path.startswith("/old/"):
            raise web.HTTPTemporaryRedirect(request.path.replace("/old/", "/new/"))
        raise web.HTTPFound(f"{elsewhere}/blob?signature=1")

    monkeypatch.setenv("HF_ENDPOINT", f"{await start(handle)}/")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    url = HuggingFace().url(Source(repo="old/repo", file="a folder/tiny-random.gguf", revision="refs/pr/1"))
    assert await read(url) == read_header(path)
    assert seen == [
        ("/old/repo/resolve/refs/pr/1/a folder/tiny-random.gguf", "Bearer hf_secret"),
        ("/new/repo/resolve/refs/pr/1/a folder/tiny-random.gguf", "Bearer hf_secret"),
        ("store", None),
    ]
    seen.clear()
    await read(f"{elsewhere}/tiny-random.gguf")
    assert seen == [("store", None)]


async def test_a_stored_login_counts(
    start: Start, model_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who has logged in with the hub's own tool needs no HF_TOKEN, here as in a pull."""
    seen: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        seen.append(request.headers.get("Authorization"))
        return web.FileResponse(model_dir / "tiny-random.gguf")

    (tmp_path / "token").write_text("hf_stored\n")
    monkeypatch.setenv("HF_ENDPOINT", await start(handle))
    await read(HuggingFace().url(Source(repo="owner/repo", file="tiny-random.gguf")))
    assert seen == ["Bearer hf_stored"]


async def test_a_page_of_the_hub_names_its_file(
    start: Start, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that a browser shows for a file is understood."""

    async def handle(request: web.Request) -> web.StreamResponse:
        assert request.path == "/owner/repo/resolve/main/tiny-random.gguf"
        return web.FileResponse(model_dir / "tiny-random.gguf")

    address = await start(handle)
    monkeypatch.setenv("HF_ENDPOINT", address)
    await read(f"{address}/owner/repo/blob/main/tiny-random.gguf")


@pytest.mark.parametrize(
    ("status", "said", "token", "error"),
    [
        (401, "GatedRepo", "", HubTokenMissing),
        (403, "GatedRepo", "hf_x", LicenceNotAccepted),
        (401, "RepoNotFound", "", HubRepositoryNotFound),
        (404, "RevisionNotFound", "", HubRevisionNotFound),
        (404, "EntryNotFound", "", HubFileNotFound),
        (401, "", "hf_x", HubTokenInvalid),
        (401, "", "", HubRepositoryNotFound),
        (404, "", "", HubFileNotFound),
        (416, "", "", InvalidModelFile),
        (429, "", "", HubFailed),
        (503, "", "", HubFailed),
    ],
)
async def test_refusals(
    status: int,
    said: str,
    token: str,
    error: type[ImagegenError],
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each refusal of the hub is an error of its own, with the bare file name and without the token."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"X-Error-Code": said})

    address = await start(handle)
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ImagegenError, match=r"x\.gguf") as caught:
        await read(f"{address}/owner/repo/resolve/main/x.gguf")
    assert type(caught.value) is error
    assert said != "GatedRepo" or "https://huggingface.co/owner/repo is gated" in str(caught.value)
    assert "hf_x" not in str(caught.value)


def answer(status: int, body: bytes, **headers: str) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, body=body, headers=given)

    return handle


async def chunked(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse()
    stream.enable_chunked_encoding()
    await stream.prepare(request)
    await stream.write(b"GGUF")
    return stream


async def cut(request: web.Request) -> web.StreamResponse:
    stream = web.StreamResponse(status=206, headers={"Content-Range": "bytes 0-999/1000"})
    stream.content_length = 1000
    await stream.prepare(request)
    await stream.write(b"GGUF")
    assert request.transport is not None
    request.transport.abort()
    return stream


async def changing(request: web.Request) -> web.StreamResponse:
    first = int(request.headers["Range"].removeprefix("bytes=").split("-")[0])
    text = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 1 << 20)
    size = 9_000_000 + first
    part = f"bytes {first}-{first + FIRST_WINDOW - 1}/{size}"
    return web.Response(status=206, body=text.ljust(FIRST_WINDOW, b"x"), headers={"Content-Range": part})


async def ring(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/again/x.gguf")


@pytest.mark.parametrize(
    ("handler", "error", "words"),
    [
        (answer(206, b"GGUF", Content_Range="bytes 5-8/100"), HubFailed, "another part"),
        (answer(206, b"GGUF", Content_Range="nonsense"), HubFailed, "another part"),
        (answer(206, b"GG", Content_Range="bytes 0-1/4"), HubFailed, "broke its answer off"),
        (answer(200, b"GGUF", Content_Encoding="gzip"), HubFailed, "compressed"),
        (answer(302, b"", Location="file:///etc/passwd"), HubFailed, "unsafe"),
        (answer(200, b""), InvalidModelFile, "the file is empty"),
        (answer(200, b"<html>404</html>"), InvalidModelFile, "it is a web page"),
        (answer(200, b"GGUF"), InvalidModelFile, "cut short"),
        (chunked, HubFailed, "how large"),
        (cut, HubFailed, "broke its answer off"),
        (changing, HubFailed, "changed"),
        (ring, HubFailed, "in a ring"),
    ],
)
async def test_lies(handler: Handler, error: type[ImagegenError], words: str, start: Start) -> None:
    """What a server gets wrong, or does on purpose, is one sentence with the bare file name."""
    address = await start(handler)
    with pytest.raises(error, match=rf"^(x\.gguf|again): [^/]*{words}[^/]*$"):
        await read(f"{address}/x.gguf")


@pytest.mark.parametrize("byte", [b"", b"G"])
async def test_a_slow_server_is_not_waited_for(byte: bytes, start: Start) -> None:
    """One that says nothing, and one that says a byte now and then, have the same time."""

    async def handle(request: web.Request) -> web.StreamResponse:
        stream = web.StreamResponse(status=206, headers={"Content-Range": "bytes 0-999/1000"})
        stream.content_length = 1000
        if byte:
            await stream.prepare(request)
        for _ in range(100):
            await asyncio.sleep(0.05)
            if byte:
                await stream.write(byte)
        return stream

    address = await start(handle)
    with pytest.raises(HubTimeout, match=r"^x\.gguf: "):
        await read(f"{address}/x.gguf", deadline=0.4)


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that nobody listens on is told from a server that fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(HubUnreachable, match=r"x\.gguf: 127\.0\.0\.1 cannot be reached"):
            await read(f"http://127.0.0.1:{free.getsockname()[1]}/x.gguf")


async def test_offline_means_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE the hub is not asked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubOffline):
        await read("http://127.0.0.1:9/owner/repo/resolve/main/x.gguf")


async def test_a_token_that_cannot_be_sent_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token with a line break in it is refused in words that do not hold it."""
    monkeypatch.setenv("HF_TOKEN", "hf_se\ncret")
    with pytest.raises(HubTokenInvalid) as caught:
        await read("http://127.0.0.1:9/owner/repo/resolve/main/x.gguf")
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://", "https:///x.gguf", "http://[::1/x", "http://h:99999/x", "ftp://h/x"]
)
async def test_what_is_no_address_is_refused(url: str) -> None:
    """Half an address, or one of another kind, is the caller's mistake."""
    with pytest.raises(InvalidRequest, match="is not a web address"):
        await read(url)
