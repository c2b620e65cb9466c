"""The log of a server at work: who asked for what, how it ended, and nothing that a client can forge."""

from __future__ import annotations

import io
import logging
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import pytest
from PIL import Image

from gguf_imagegen.api.job_log import PROMPT_CHARACTERS, first_words
from gguf_imagegen.machine import logs
from tests.api.client import EDITS, GENERATIONS, SMALL, noise, png, start_job
from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import FailsGeneration, NeverAnswers, QuickEngine
from tests.survival import b64, client_of

KEYS = "first-Zm9v, second-YmFy"


def lines_of(caplog: pytest.LogCaptureFixture, job: str) -> list[str]:
    """What the log says about this job."""
    return [record.getMessage() for record in caplog.records if job in record.getMessage()]


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_job_is_two_lines(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """Who, what and with which numbers; then how long it took."""
    async with running(engine=QuickEngine) as app:
        fields = {**SMALL, "prompt": "a cat in the snow", "seed": 7, "n": 2, "cfg_scale": 1}
        _, body = await app.post(GENERATIONS, **fields)
    begun, ended = lines_of(caplog, body["id"])
    assert begun == (
        f'job {body["id"]} of 127.0.0.1: generation, tiny-random, "a cat in the snow", 2 of 64x64, 2 steps,'
        " cfg 1, seed 7"
    )
    assert re.fullmatch(rf"job {body['id']} succeeded in \d+\.\d s after \d+\.\d s in the queue", ended)


async def test_every_dialect_is_logged(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """Edits, streams, AUTOMATIC1111's and sd.cpp's requests, and pictures that are enlarged alone."""
    image = b64(png(noise()))
    async with running(engine=QuickEngine) as app:
        requests: list[tuple[str, dict[str, object]]] = [
            (EDITS, {**SMALL, "image": image}),
            ("/sdapi/v1/txt2img", {"prompt": "x", "steps": 2, "width": 64, "height": 64}),
            ("/sdcpp/v1/img_gen", {"prompt": "x", "width": 64, "height": 64}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ]
        for count, (path, fields) in enumerate(requests, start=1):
            assert (await app.post(path, **fields))[0] in (200, 202)
            begun = [r.getMessage() for r in caplog.records if " of 127.0.0.1: " in r.getMessage()]
            assert len(begun) == count
    assert ": edit, " in begun[0]


async def test_failures_and_cancels_say_why(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """The last line of a job that made nothing has the error, with its code."""
    async with running(engine=FailsGeneration) as app:
        await app.post(GENERATIONS, **SMALL)
    assert re.search(r"failed in \d+\.\d s .*: generation_failed: .*out of paint", caplog.text)
    async with running(engine=NeverAnswers) as app:
        task, job = await start_job(app)
        await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        await task
    assert re.search(
        r"was cancelled in \d+\.\d s after .*: the job was cancelled", lines_of(caplog, job["id"])[-1]
    )


async def test_callers_are_told_apart_without_their_keys(
    running: RunningApp, caplog: pytest.LogCaptureFixture
) -> None:
    """By the place of their key in --api-key."""
    async with running(engine=QuickEngine, api_key=KEYS) as app:
        for number, key in enumerate(KEYS.split(", "), start=1):
            headers = {"Authorization": f"Bearer {key}"}
            async with app.session.post(app.url + GENERATIONS, json=SMALL, headers=headers) as answer:
                assert answer.status == 200
            assert f"of 127.0.0.1 with key {number}: " in caplog.text
    assert not [key for key in KEYS.split(", ") if key in caplog.text]


async def test_a_refused_request_is_one_line(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """By the id that its answer has, in any dialect; without its prompt, or the secret name of a picture."""
    caplog.set_level(logging.DEBUG)
    prompt = {"prompt": "a secret cat"}
    async with running(engine=QuickEngine) as app:

        async def refused(method: str, path: str, **fields: object) -> tuple[str, str]:
            """The level and the words of the only line about it."""
            async with app.session.request(method, app.url + path, json=fields or None) as answer:
                assert answer.status >= 400
                start = f"request {answer.headers['X-Request-ID']} refused: "
            (line,) = [each for each in caplog.records if each.getMessage().startswith(start)]
            return line.levelname, line.getMessage().removeprefix(start)

        level, words = await refused("POST", GENERATIONS, **prompt, size="64x6400")
        assert (level, words.partition(" size: ")[0]) == ("INFO", "openai, POST /v1/images/generations, 400:")
        level, words = await refused("POST", "/sdapi/v1/txt2img", **prompt, steps="many")
        assert (level, words.partition(": ")[0]) == ("INFO", "a1111, POST /sdapi/v1/txt2img, 400")
        level, words = await refused("POST", "/v1/nothing", **prompt)
        assert (level, words.partition(": ")[0]) == ("INFO", "images, no route, 404")
        level, words = await refused("GET", "/v1/images/files/unguessable.png")
        assert (level, words.partition(": ")[0]) == ("DEBUG", "images, GET /v1/images/files/{name}, 404")
    assert "secret cat" not in caplog.text
    assert "unguessable" not in caplog.text


async def test_a_failed_job_is_not_refused(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """It has the two lines of a job."""
    async with running(engine=FailsGeneration) as app:
        assert (await app.post(GENERATIONS, **SMALL))[0] == 500
    assert "refused" not in caplog.text


async def test_prompts_may_be_left_out(running: RunningApp, caplog: pytest.LogCaptureFixture) -> None:
    """`--no-log-prompts`."""
    async with running(engine=QuickEngine, log_prompts=False) as app:
        _, body = await app.post(GENERATIONS, **{**SMALL, "prompt": "a secret cat"})
    assert len(lines_of(caplog, body["id"])) == 2
    assert "cat" not in caplog.text


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cat", '"a cat"'),
        ("a\n2026-11-29 INFO job\tdone\r\n", '"a 2026-11-29 INFO job done"'),
        ('a", 64x64, "', r'"a\", 64x64, \""'),
        ("a\x1b[2Jcat\x00\u202e\u2028", r'"a\u001b[2Jcat\u0000\u202e"'),
        ("caffè 猫", '"caffè 猫"'),
        ("x" * 8000, f'"{"x" * PROMPT_CHARACTERS}…"'),
        (" " * 8000 + "x", '""'),
    ],
)
def test_first_words(prompt: str, words: str) -> None:
    """Few, on one line, in quotes that end where they end."""
    shown = first_words(prompt)
    assert shown.isprintable()
    assert shown == words
    assert len(shown) <= 6 * PROMPT_CHARACTERS


def test_no_record_is_two_lines() -> None:
    """What somebody puts into a message stays on its line; a traceback has its own."""
    record = logging.LogRecord("x", logging.INFO, "x", 1, "name %s", ("a\nINFO forged\x1b\u2028",), None)
    assert logs.OneLine("%(message)s").format(record) == r"name a\nINFO forged\x1b\u2028"


async def test_the_log_of_a_server(serve: Callable[..., ServerProcess]) -> None:
    """On stderr, by default; a forged line in a prompt is none."""
    server = serve()
    server.wait_until_ready()
    async with client_of(server) as client:
        await client.make(prompt="x\n2026-11-29 00:00:00,000 INFO forged", seed=7)
    assert not [line for line in server.log().splitlines() if line.endswith("INFO forged")]
    assert "64x64, 1 steps, " in server.log()


async def test_an_odd_picture_is_not_told(serve: Callable[..., ServerProcess]) -> None:
    """What Pillow thinks of a client's file is no line of the log, nor is where Pillow is installed."""
    server = serve()
    server.wait_until_ready()
    whole = png(noise())
    animation = struct.pack(">I4sII", 8, b"acTL", 0, 0)
    animation += struct.pack(">I", zlib.crc32(animation[4:]))
    odd = whole[:33] + animation + whole[33:]  # behind the IHDR: an animation without frames
    with pytest.warns(UserWarning, match="Invalid APNG"):
        Image.open(io.BytesIO(odd)).close()
    async with client_of(server) as client:
        assert (await client.make(EDITS, image=b64(odd))).status == 200
    assert "APNG" not in server.log()
    assert "site-packages" not in server.log()


def test_other_warnings_are_one_line() -> None:
    """Of the code that warns neither the file nor the line is shown."""
    code = (
        "import warnings; from gguf_imagegen.machine import logs; logs.set_up('info'); warnings.warn('odd')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stderr.rstrip().endswith(" WARNING UserWarning: odd")
    assert len(run.stderr.splitlines()) == 1
