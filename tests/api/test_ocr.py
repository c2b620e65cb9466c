"""POST /v1/images/ocr: what Xinference's client sends and reads, and how the process behind it is held."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys
from typing import Any

import aiohttp
import psutil
import pytest
from PIL import Image
from xinference_client.client.restful.restful_client import RESTfulImageModelHandle

from gguf_imagegen.engines.ocr.reader import Reader
from gguf_imagegen.vocabulary.callers import Allowance, Caller
from gguf_imagegen.vocabulary.engine import Read
from gguf_imagegen.vocabulary.errors import InvalidImage, QueueFull, ReadingFailed, WorkerCrashed
from tests.api.client import data_url, eventually, png
from tests.conftest import App, RunningApp
from tests.fake_reader import BLANK, DIES, FAILS, HANGS, LINES, fake_reader

OCR = "/v1/images/ocr"
ANN = Caller("ann", bounds=Allowance(jobs=1))


def of_width(width: int) -> bytes:
    return png(Image.new("RGB", (width, 64), "white"))


def task(width: int = 64) -> Read:
    return Read(of_width(width), 1 << 20)


def reader(**bounds: Any) -> Reader:
    return Reader(fake_reader, **{"most": 3, "keep": 30.0, **bounds})


def processes() -> list[psutil.Process]:
    """The fake readers of this test's process."""
    children = psutil.Process().children()
    return [each for each in children if any("fake_reader" in word for word in each.cmdline())]


async def gone(process: psutil.Process) -> None:
    async def look() -> bool:
        return not process.is_running()

    await eventually("the process has ended", look)


async def form(app: App, **parts: Any) -> tuple[int, Any]:
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in parts.items():
        data.add_field(name, value, **({"filename": name} if isinstance(value, bytes) else {}))
    async with app.session.post(app.url + OCR, data=data) as answer:
        return answer.status, await answer.json()


async def test_what_xinferences_client_reads(running: RunningApp) -> None:
    """Plain text, and a dictionary with boxes and scores."""
    async with running(reader=fake_reader) as app:
        handle = RESTfulImageModelHandle("any", app.url, auth_headers={})
        assert await asyncio.to_thread(handle.ocr, of_width(64)) == "Hello\nworld"
        assert await asyncio.to_thread(handle.ocr, of_width(BLANK)) == ""
        told = await asyncio.to_thread(lambda: handle.ocr(of_width(64), return_dict=True))
    assert told["task"] == "ocr"
    assert told["lines"][0] == {
        "text": "Hello",
        "score": 0.99,
        "box": [list(point) for point in LINES[0].box],
    }


async def test_json_is_taken_too(running: RunningApp) -> None:
    async with running(reader=fake_reader) as app:
        status, text = await app.post(OCR, image=data_url(of_width(64)), kwargs={"task": "ocr"}, model=None)
    assert (status, text) == (200, "Hello\nworld")


@pytest.mark.parametrize(
    ("parts", "code", "words"),
    [
        ({"model": "x"}, "invalid_request", "image: is required"),
        ({"image": b"no picture"}, "invalid_image", "Invalid image"),
        ({"image": of_width(64), "kwargs": "{"}, "invalid_request", "kwargs: must be a JSON object"),
        ({"image": of_width(64), "kwargs": '{"task": "layout"}'}, "unsupported_operation", "'layout'"),
        ({"image": of_width(64), "return_dict": "perhaps"}, "invalid_request", "return_dict"),
        ({"image": png(Image.new("1", (400, 300)))}, "invalid_image", "100000"),
    ],
    ids=["no image", "no picture", "no object", "another task", "no boolean", "too large"],
)
async def test_bad_input_is_told(running: RunningApp, parts: dict[str, Any], code: str, words: str) -> None:
    async with running(reader=fake_reader, max_input_pixels=100_000) as app:
        status, body = await form(app, **parts)
    assert (status, body["error"]["code"]) == (400, code)
    assert words in str(body["detail"]) + body["error"]["message"]


async def test_without_the_extra(running: RunningApp) -> None:
    """501, with the line that installs it, before the body is read."""
    assert importlib.util.find_spec("rapidocr") is None, "this environment is without the extra"
    async with running() as app:
        status, body = await form(app, image=b"whatever")
    assert (status, body["error"]["code"]) == (501, "not_installed")
    assert "pip install 'gguf-imagegen[ocr]'" in body["detail"]


async def test_a_key_is_needed_where_there_are_keys(running: RunningApp) -> None:
    async with running(reader=fake_reader, api_key=("k",)) as app:
        status, body = await form(app, image=of_width(64))
    assert (status, body["error"]["code"]) == (401, "unauthorized")


async def test_a_client_that_leaves_ends_the_process(running: RunningApp) -> None:
    """Nobody waits for a picture that nobody wants; the next one starts another process."""
    async with running(reader=fake_reader) as app:
        left = asyncio.create_task(form(app, image=of_width(HANGS)))

        async def started() -> psutil.Process | None:
            return next(iter(processes()), None)

        process = await eventually("a process reads", started)
        left.cancel()
        await gone(process)
        assert await form(app, image=of_width(64)) == (200, "Hello\nworld")
        (other,) = processes()
    await gone(other)  # with the server


async def test_one_that_hangs_is_ended() -> None:
    """The picture fails, in words, and the process goes."""
    held = reader(longest=1.0)
    with pytest.raises(ReadingFailed, match=r"not read within 1 s"):
        await held.read(task(HANGS))
    assert processes() == []


async def test_one_that_dies_is_replaced() -> None:
    held = reader()
    with pytest.raises(WorkerCrashed, match="exit code 7"):
        await held.read(task(DIES))
    assert await held.read(task()) == LINES
    await held.close()


async def test_a_failure_leaves_the_process_alive() -> None:
    held = reader()
    await held.read(task())
    (process,) = processes()
    with pytest.raises(ReadingFailed, match="the library gave up"):
        await held.read(task(FAILS))
    with pytest.raises(InvalidImage):
        await held.read(Read(b"x", 100))
    assert await held.read(task()) == LINES
    assert processes() == [process]
    await held.close()


async def test_it_ends_when_idle() -> None:
    """`keep` seconds after the last picture; a negative one keeps it."""
    held, kept = reader(keep=0.0), reader(keep=-1.0)
    assert await kept.read(task()) == LINES
    (alive,) = processes()
    assert await held.read(task()) == LINES
    for process in processes():
        if process != alive:
            await gone(process)
    assert await held.read(task()) == LINES
    assert alive.is_running()
    await held.close()
    await kept.close()


async def test_the_queue_is_bounded() -> None:
    """For all together, and for a caller with a bound of its own."""
    held = reader()
    waiting = [asyncio.create_task(held.read(task(HANGS), ANN))]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="1 pictures of ann wait to be read, and it may have 1 at once"):
        held.check(ANN)
    waiting += [asyncio.create_task(held.read(task(HANGS))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="3 pictures are waiting"):
        await held.read(task())
    for each in waiting:
        each.cancel()
    await asyncio.wait(waiting)
    assert await held.read(task(), ANN) == LINES
    await held.close()


def test_the_library_is_not_imported() -> None:
    """Neither by the server nor by what starts the process."""
    code = (
        "import sys, gguf_imagegen.api.app, gguf_imagegen.commands.cli, gguf_imagegen.commands.serve;"
        "print([m for m in sys.modules if m.split('.')[0] in ('rapidocr', 'onnxruntime', 'cv2', 'mcp')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"
