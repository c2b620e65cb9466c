"""Bodies as careless and as hostile clients send them: what they are written in, and how much of it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import logging
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from PIL import Image, ImageFile

from gguf_imagegen.api.body import BODIES
from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, eventually, noise, png
from tests.conftest import DEADLINE, App, RunningApp, ServerProcess
from tests.fake_engines import NeverAnswers, QuickEngine
from tests.weights import write_upscaler

BODY = json.dumps(SMALL).encode()
MEGABYTE = 1 << 20


async def send(app: App, data: bytes, path: str = GENERATIONS, **headers: str) -> tuple[int, Any]:
    """The answer to a body as it is; `Content_Type` and the like as headers."""
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    async with app.session.post(app.url + path, data=data, headers=named, compress=None) as answer:
        return answer.status, await answer.json()


def deflated(data: bytes, bits: int) -> bytes:
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


# -- content encodings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("gzip", gzip.compress(BODY, mtime=0)),
        ("deflate", deflated(BODY, 15)),
        ("deflate", deflated(BODY, -15)),
        ("identity", BODY),
    ],
)
async def test_compressed_bodies(running: RunningApp, encoding: str, data: bytes) -> None:
    async with running(engine=QuickEngine) as app:
        assert (await send(app, data, Content_Encoding=encoding))[0] == 200


@pytest.mark.parametrize("path", [GENERATIONS, "/v1-openai/images/generations", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize(
    ("encoding", "data", "expected"),
    [
        ("gzip", BODY, 400),
        ("deflate", BODY, 400),
        ("gzip", gzip.compress(BODY, mtime=0)[:-12], 400),
        ("gzip", b"", 400),
        ("br", BODY, 415),
        ("zstd", BODY, 415),
        ("rot13", BODY, 415),
    ],
)
async def test_encodings_that_are_wrong_or_unknown(
    running: RunningApp, path: str, encoding: str, data: bytes, expected: int
) -> None:
    """Each is the client's fault, in the shape of its dialect."""
    async with running(engine=QuickEngine) as app:
        status, body = await send(app, data, path, Content_Encoding=encoding)
        assert status == expected, body
        numeric = path.startswith("/v1-openai")
        assert body["error"]["reason" if numeric else "code"] in ("invalid_request", "unsupported_media_type")
        assert encoding in body["detail"]


async def test_a_small_body_that_becomes_a_large_one(running: RunningApp) -> None:
    """It is unpacked no further than the limit."""
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(MEGABYTE)) for _ in range(300)) + packer.flush()
    async with running(engine=QuickEngine, max_body_mb=2) as app:
        status, body = await send(app, bomb, Content_Encoding="gzip")
        assert (status, body["error"]["code"]) == (413, "payload_too_large")
        assert app.app[BODIES].used == 0


async def test_a_compressed_form(running: RunningApp) -> None:
    async with running(engine=QuickEngine) as app:
        form = {"Content_Type": "multipart/form-data; boundary=b", "Content_Encoding": "gzip"}
        status, body = await send(app, gzip.compress(b"--b--\r\n"), EDITS, **form)
        assert (status, body["error"]["code"]) == (415, "unsupported_media_type")


# -- charsets -----------------------------------------------------------------------------------------

TEXT = json.dumps({**SMALL, "prompt": "ein Käse"}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("charset", "data"),
    [
        (None, b"\xef\xbb\xbf" + TEXT.encode()),
        ("utf-8", b"\xef\xbb\xbf" + TEXT.encode()),
        (None, TEXT.encode("utf-16")),
        ("utf-16", TEXT.encode("utf-16")),
        ("UTF-16LE", TEXT.encode("utf-16-le")),
        ("iso-8859-1", TEXT.encode("latin-1")),
        ("Windows-1252", TEXT.encode("cp1252")),
        ("us-ascii", TEXT.encode()),
    ],
)
async def test_charsets(running: RunningApp, charset: str | None, data: bytes) -> None:
    """A byte order mark is skipped, and what the content type says is believed."""
    async with running(engine=QuickEngine) as app:
        kind = "application/json" + (f"; charset={charset}" if charset else "")
        status, body = await send(app, data, Content_Type=kind)
        assert status == 200, body
        (job,) = app.scheduler.jobs.values()
        assert job.plan.spec.prompt == "ein Käse"


@pytest.mark.parametrize(
    ("charset", "data", "status", "words"),
    [
        (None, TEXT.encode("latin-1"), 400, "the body is not UTF-8 text"),
        ("utf-8", TEXT.encode("latin-1"), 400, "the body is not UTF-8 text"),
        ("utf-16", b"\xff\xfe\x00\xd8{", 400, "the body is not utf-16 text"),
        ("ebcdic", TEXT.encode(), 415, "charset 'ebcdic' is not known here"),
        ("zlib", TEXT.encode(), 415, "charset 'zlib' is not known here"),
        ("punycode", TEXT.encode(), 415, "charset 'punycode' is not known here"),
    ],
)
async def test_charsets_that_are_wrong(
    running: RunningApp, charset: str | None, data: bytes, status: int, words: str
) -> None:
    async with running(engine=QuickEngine) as app:
        kind = "application/json" + (f"; charset={charset}" if charset else "")
        answer = await send(app, data, Content_Type=kind)
        assert answer[0] == status
        assert words in answer[1]["error"]["message"]


async def test_charsets_of_parts(running: RunningApp) -> None:
    """Each part of a form has its own."""
    async with running(engine=QuickEngine) as app:
        head = '--b\r\nContent-Disposition: form-data; name="prompt"\r\n'
        form = f"{head}Content-Type: text/plain; charset=iso-8859-1\r\n\r\nKäse\r\n--b--\r\n".encode(
            "latin-1"
        )
        status, body = await send(app, form, Content_Type="multipart/form-data; boundary=b")
        assert status == 200, body
        (job,) = app.scheduler.jobs.values()
        assert job.plan.spec.prompt == "Käse"


# -- clients that leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [0, 10])
async def test_a_connection_closed_in_one_direction(
    running: RunningApp, caplog: pytest.LogCaptureFixture, missing: int
) -> None:
    """A client that says it sends nothing more has left: its job ends, and no error is logged."""
    async with running(engine=NeverAnswers) as app:
        host, port = app.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(BODY) + missing}\r\n\r\n"
        writer.write(head.encode() + BODY)
        if not missing:
            await eventually("the job runs", lambda: _running_job(app))
        writer.write_eof()
        assert b" 500 " not in await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await eventually("nothing runs", lambda: _nothing_runs(app))
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def _running_job(app: App) -> bool:
    return bool(app.scheduler.running)


async def _nothing_runs(app: App) -> bool:
    return not app.scheduler.running and all(job.ended for job in app.scheduler.jobs.values())


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"lora": [{"name": "a" + "é" * 199}]},
        {"upscale": 2, "upscaler": "a" + "é" * 199},
        {"hires": {"upscaler": "a" + "é" * 199}},
    ],
)
async def test_names_too_long_for_a_file(running: RunningApp, tmp_path: Path, fields: dict[str, Any]) -> None:
    """200 characters may be 400 bytes, which no file system takes."""
    async with running(engine=QuickEngine, lora_dir=tmp_path, upscaler_dir=tmp_path) as app:
        status, body = await app.post(GENERATIONS, **SMALL, **fields)
        assert (status, body["error"]["code"]) == (400, "invalid_request")


# -- the loop and its threads -------------------------------------------------------------------------


def b64(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


ROUTES: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "edit": (EDITS, lambda: {**SMALL, "image": data_url(png(noise())), "mask": data_url(png(noise()))}),
    "img2img": ("/sdapi/v1/img2img", lambda: {"prompt": "a", "steps": 1, "init_images": [b64(noise())]}),
    "png-info": ("/sdapi/v1/png-info", lambda: {"image": b64(noise())}),
    "extras": ("/sdapi/v1/extra-single-image", lambda: {"image": b64(noise()), "upscaler_1": "Lanczos"}),
    "sd.cpp": ("/sdcpp/v1/img_gen", lambda: {"prompt": "a", "init_image": b64(noise())}),
    "chat": (
        "/v1/chat/completions",
        lambda: {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a"},
                        {"type": "image_url", "image_url": {"url": data_url(png(noise()))}},
                    ],
                }
            ]
        },
    ),
}


@pytest.mark.parametrize("route", ROUTES)
async def test_pictures_are_not_opened_on_the_loop(
    running: RunningApp, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither headers nor pixels nor base64 of a picture keep the event loop from other requests."""
    threads: dict[str, set[threading.Thread]] = {"opened": set(), "decoded": set()}
    opened, decoded = Image.open, base64.b64decode

    def look(what: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*args: Any, **options: Any) -> Any:
            threads[what].add(threading.current_thread())
            return inner(*args, **options)

        return seen

    path, make = ROUTES[route]
    body = make()
    async with running(engine=QuickEngine) as app:
        monkeypatch.setattr(Image, "open", look("opened", opened))
        monkeypatch.setattr(base64, "b64decode", look("decoded", decoded))
        status, answer = await app.post(path, **body)
        assert status < 300, answer
    for seen in threads.values():
        assert seen
        assert threading.current_thread() not in seen


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 99},
        {"steps": 100_000},
        {"size": "64x6400"},
        {"size": "8192x8192"},
        {"prompt": ""},
        {"schedule": "karas"},
        {"seed": 2**53},
        {"hires": {"width": 4096, "height": 2048}},
        {"lora": [{"name": "nobody"}]},
        {"mask": data_url(png(noise(64, 32)))},
        {"image": [data_url(png(noise()))] * 3},
        {"control": data_url(png(noise()))},
        {"upscale": 2, "upscaler": "nobody"},
    ],
    ids=lambda fields: ",".join(fields),
)
async def test_what_is_refused_is_refused_before_decoding(
    running: RunningApp, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that can be told without pixels is told without them."""
    body = {**SMALL, "image": data_url(png(noise())), **fields}
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels were decoded"))
    async with running(engine=QuickEngine) as app:
        status, answer = await app.post(EDITS, **body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error"), answer


# -- memory -------------------------------------------------------------------------------------------


async def test_a_waiting_job_holds_no_body(running: RunningApp) -> None:
    """Once it is planned, its body is let go, and others have its room."""
    picture = base64.b64encode(png(noise(1200, 1000))).decode()
    assert len(picture) > 2 * MEGABYTE
    async with running(engine=NeverAnswers) as app:
        body = io.BytesIO(json.dumps({**SMALL, "image": picture}).encode())
        task = asyncio.create_task(app.session.post(app.url + EDITS, data=body))
        await eventually("the job runs", lambda: _running_job(app))
        assert app.app[BODIES].used == 0
        assert app.service.pixels.small.used == app.service.pixels.large.used == 0
        task.cancel()


async def test_small_bodies_pass_large_ones_that_stall(running: RunningApp) -> None:
    """Clients that stop in the middle of large bodies keep nobody else from being served."""
    async with running(engine=QuickEngine, max_body_mb=8) as app:
        host, port = app.url.removeprefix("http://").split(":")
        writers = []
        for _ in range(8):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(
                f"POST {GENERATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 8000000\r\n\r\n".encode()
            )
            writer.write(b" " * 7_900_000)
            writers.append(writer)
        full = app.app[BODIES].total - 8 * MEGABYTE

        async def is_full() -> bool:
            return app.app[BODIES].used >= full

        await eventually("the budget is taken", is_full)
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        assert app.app[BODIES].used <= app.app[BODIES].total + 8 * MEGABYTE
        for writer in writers:
            writer.close()

        async def is_empty() -> bool:
            return app.app[BODIES].used == 0

        await eventually("the budget is given back", is_empty)


async def test_jobs_that_wait_hold_no_more_pixels_than_they_may(running: RunningApp, tmp_path: Path) -> None:
    """Pictures to enlarge wait at their full size: beyond a bound the next is told to come back."""
    write_upscaler(tmp_path / "double.gguf", 2)
    large = {"image": b64(Image.new("RGB", (5000, 2400))), "upscaler_1": "double"}
    async with running(engine=NeverAnswers, upscaler_dir=tmp_path) as app:
        tasks = [asyncio.create_task(app.post("/sdapi/v1/extra-single-image", **large)) for _ in range(12)]
        done, waiting = await asyncio.wait(tasks, timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
        status, body = done.pop().result()
        assert (status, body["error"]["code"]) == (503, "server_busy")
        assert len(app.scheduler.jobs) < 12
        assert (await app.get("/livez"))[0] == 200
        for task in waiting:
            task.cancel()


class Memory:
    """Resident bytes of a server: before, and the most while looked at."""

    def __init__(self, server: ServerProcess) -> None:
        self._process = psutil.Process(server.process.pid)
        self.before = self.most = self.now

    @property
    def now(self) -> int:
        return int(self._process.memory_info().rss)

    async def watch(self) -> None:
        while True:
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)

    async def is_back(self) -> bool:
        return self.now < self.before + 60 * MEGABYTE


async def test_memory_of_large_pictures(
    serve: Callable[..., ServerProcess], session: aiohttp.ClientSession
) -> None:
    """Four edits at once of two pictures of 36 million pixels: one is decoded at a time, and given back."""
    server = serve()
    server.wait_until_ready()
    out = io.BytesIO()
    Image.new("RGB", (6000, 6000), "white").save(out, "PNG", compress_level=1)
    memory = Memory(server)
    watching = asyncio.create_task(memory.watch())

    async def edit() -> int:
        form = aiohttp.FormData({"prompt": "a cat", "steps": "1", "size": "64x64"})
        for name in ("image", "mask"):
            form.add_field(name, out.getvalue(), filename="a.png")
        async with session.post(server.url + EDITS, data=form) as answer:
            return answer.status

    assert await asyncio.gather(*(edit() for _ in range(4))) == [200] * 4
    await eventually("memory is given back", memory.is_back)
    watching.cancel()
    assert memory.most < memory.before + 260 * MEGABYTE


async def test_memory_of_refused_bodies(
    serve: Callable[..., ServerProcess], session: aiohttp.ClientSession
) -> None:
    """What was refused is not kept until some collection of garbage, however many of them come."""
    server = serve()
    server.wait_until_ready()
    memory = Memory(server)
    lists = b'{"prompt": [' + b"[]," * (16 * MEGABYTE) + b"0]}"
    rubbish = json.dumps({"prompt": "a", "image": "QUJD" * (10 * MEGABYTE)}).encode()
    for data in (lists, rubbish) * 3:
        async with session.post(server.url + EDITS, data=io.BytesIO(data)) as answer:
            assert answer.status in (400, 413)
    await eventually("memory is given back", memory.is_back)
