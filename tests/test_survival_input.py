"""Survival of what a request can carry: text, numbers and images that would end or mislead the engine."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ServerProcess
from tests.survival import (
    EDITS,
    Client,
    Stream,
    b64,
    client_of,
    client_of_mortal,
    encoded,
    half_mask,
    noise,
    png,
    worker_of,
)


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[Client]:
    """A client of the shared server, whose worker must outlive the test."""
    worker = await worker_of(server)
    async with client_of_mortal(server) as client:
        yield client
        assert (await client.get("/health")).body["status"] == "ok"
    assert (await worker_of(server)).pid == worker.pid


@pytest.fixture(scope="module", autouse=True)
async def served_after_all(server: ServerProcess) -> AsyncIterator[None]:
    """After everything below the server still makes pictures, with the worker it began with."""
    async with client_of(server) as client:
        await client.still_serves()
        worker = await worker_of(server)
        yield
    assert (await worker_of(server)).pid == worker.pid


def colours(image: Image.Image) -> int:
    """The tiny model makes a colour for each 8x8 block, 64 in all; pixels that are NaN are one."""
    return len(np.unique(np.asarray(image).reshape(-1, 3), axis=0))


# -- text ---------------------------------------------------------------------------------------------

PROMPTS = {
    "dot as weight": "(x:.)",
    "dots as weight": "what (is this:...)",
    "dots and signs": "(a:+.) (b:-...) (c:1.2.3) (d:..5)",
    "negative weight": "(x:-5)",
    "weight beyond a float": "(x:" + "9" * 400 + ")",
    "tiny weight": "(x:0." + "0" * 400 + "1)",
    "lora tag that hides a weight": "(x:<lora:a:1>.)",
    "brackets without end": ")" * 50 + "]" * 50,
    "backslashes": "\\" * 2000,
    "longest in ASCII": "a" * 8000,
    "longest in emoji": "\U0001f600" * 4000,
    "planes without characters": "\U000b1a17\u00f5 l\U0009a34d \U0010fffd" * 20,
    "control characters": "\x01\x1b31m\x7f\u0080\ufeff\u202e" * 200,
    "combining marks": "a" + "\u0301" * 1000,
}


@pytest.mark.parametrize("kind", PROMPTS)
async def test_prompts_that_the_engine_must_survive(client: Client, kind: str) -> None:
    """Each gets a real picture, as prompt and as negative prompt."""
    answer = await client.make(prompt=PROMPTS[kind], negative_prompt=PROMPTS[kind], cfg_scale=2)
    assert colours(answer.picture()) > 30


@pytest.mark.parametrize(
    "prompt", ["(" * 4000 + "x", "(" * 800 + "x:10)" * 800, "(]" * 2000 + "x", "[" * 4000 + "x"]
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
async def test_brackets_nested_without_measure(client: Client, field: str, prompt: str) -> None:
    """Weights multiply with each bracket until the picture is one grey area: refused with words."""
    answer = await client.make(**{field: prompt})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.body["error"]["param"] == field
    assert "brackets" in answer.message


async def test_brackets_as_people_nest_them(client: Client) -> None:
    """Sixteen levels of the strongest weight still make a picture, and escaped brackets do not count."""
    deep = "(" * 16 + "x" + ":10)" * 16
    assert colours((await client.make(prompt=deep)).picture()) > 30
    assert (await client.make(prompt="\\(" * 500 + "x")).status == 200


@pytest.mark.parametrize("prompt", ["a" * 8001, "a" * 1_000_000, "\U0001f600" * 4001, "\U0001f600" * 8000])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
async def test_prompts_that_are_too_long(client: Client, field: str, prompt: str) -> None:
    """Beyond the limit the answer is a 400 that names the limit and does not repeat the prompt."""
    answer = await client.make(**{field: prompt})
    assert (answer.status, answer.code) == (400, "prompt_too_long")
    assert "8000 characters" in answer.message
    assert len(answer.message) < 300


@pytest.mark.parametrize(
    "text", [r"a\u0000b", r"\ud800", r"a\udfffb", r"\ude00\ud83d"], ids=["NUL", "high", "low", "swapped"]
)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "model", "sampler", "lora"])
async def test_text_that_is_no_text(client: Client, field: str, text: str) -> None:
    """NUL and lone surrogates are refused in every text field, and the answer is valid JSON."""
    value = f'[{{"name": "{text}"}}]' if field == "lora" else f'"{text}"'
    prompt = "" if field == "prompt" else '"prompt": "x", '
    answer = await client.raw(f'{{{prompt}"{field}": {value}}}'.encode())
    assert 400 <= answer.status < 500
    assert answer.code in ("invalid_request", "unknown_sampler", "model_not_found")


async def test_surrogate_pairs_and_odd_keys(client: Client) -> None:
    """A proper pair is an emoji; a key that is no text is ignored with a warning."""
    answer = await client.raw(rb'{"prompt": "\ud83d\ude00", "steps": 1, "size": "64x64", "\ud800": 1}')
    assert answer.status == 200
    assert any("unknown field" in warning for warning in answer.body["warnings"])


# -- numbers ------------------------------------------------------------------------------------------

FLOATS = (
    "cfg_scale", "guidance", "guidance_scale", "image_cfg_scale", "strength", "eta", "flow_shift",
    "slg_scale", "slg_start", "slg_end", "control_strength", "keep_alive", "step_cache_threshold",
)  # fmt: skip


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"nan"', '"inf"', '"-1e999"'])
async def test_floats_that_are_no_numbers(client: Client, value: str) -> None:
    """NaN and infinity, however spelled, are refused in every field that takes a number."""
    for field in (*FLOATS, "steps", "seed", "n", "width", "height", "clip_skip"):
        answer = await client.raw(f'{{"prompt": "x", "{field}": {value}}}'.encode())
        assert answer.status == 400, (field, answer.body)
        assert answer.body["error"]["param"] == field
    for inside in ('"hires": {"scale": %s}', '"lora": [{"name": "a", "scale": %s}]'):
        answer = await client.raw(f'{{"prompt": "x", {inside % value}}}'.encode())
        assert (answer.status, answer.code) == (400, "invalid_request")


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": -1},
        {"steps": 10**9},
        {"steps": 10**4000},
        {"n": 10**9},
        {"seed": -2},
        {"seed": 2**63},
        {"strength": 1.1},
        {"cfg_scale": 1e30},
        {"size": "-64x64"},
        {"size": "64x4096"},
        {"size": "999999x999999"},
        {"size": "64x513"},
        {"size": "513x64"},
        {"size": "99999999999x64"},
        {"width": -128, "height": 128, "size": None},
        {"width": 2**31, "height": 2**31, "size": None},
        {"width": 2**64, "height": 1, "size": None},
        {"slg_scale": 1, "slg_skip_layers": [-1]},
    ],
    ids=lambda fields: ",".join(f"{key}={str(value)[:20]}" for key, value in fields.items()),
)
async def test_values_out_of_range(client: Client, fields: dict[str, Any]) -> None:
    """Each is refused by name before the engine hears of it."""
    answer = await client.make(**fields)
    assert (answer.status, answer.body["error"]["type"]) == (400, "invalid_request_error")
    assert answer.body["error"]["param"] in fields
    assert len(answer.message) < 5000


@pytest.mark.parametrize("schedule", ["gits", "karras", "exponential"])
async def test_schedules_with_the_least_steps_they_can_do(client: Client, schedule: str) -> None:
    """Two steps, the least that is allowed, make a picture and no grey area."""
    assert colours((await client.make(schedule=schedule, steps=2)).picture()) > 30


@pytest.mark.parametrize(
    "name", ["../tiny-random", "/etc/passwd", "..", "a/b", "a\\b", "x.gguf/../../y", "%2e%2e%2fx", "C:x", "~"]
)
async def test_loras_cannot_leave_their_folder(client: Client, name: str) -> None:
    """A path instead of a name is an unknown LoRA, and the answer tells nothing about files."""
    answer = await client.make(lora=[{"name": name}])
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert answer.body["error"]["param"] == "lora"
    assert "there are none" in answer.message


# -- sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 130), (65, 67), (64, 512), (71, 64)])
async def test_sizes_that_are_not_aligned(client: Client, size: tuple[int, int]) -> None:
    """The picture has exactly the size asked for: generated, edited, edited with a mask and streamed."""
    asked = f"{size[0]}x{size[1]}"
    source = noise(*size)
    edit = {"image": b64(encoded(source, "PNG")), "size": asked, "strength": 0.5, "steps": 2}
    assert (await client.make(size=asked)).picture().size == size
    assert (await client.make(EDITS, **edit)).picture().size == size
    masked = (await client.make(EDITS, **edit, mask=b64(encoded(half_mask(*size), "PNG")))).picture()
    assert masked.size == size
    before, after = np.asarray(source), np.asarray(masked)
    kept = size[0] // 2
    assert np.array_equal(before[:, kept:], after[:, kept:])
    assert not np.array_equal(before[:, :kept], after[:, :kept])
    async with await client.stream(size=asked) as stream:
        await stream.end()
        assert final_size(stream) == size


def final_size(stream: Stream) -> tuple[int, int]:
    import base64
    import io

    data = next(frame.item["b64_json"] for frame in stream.frames if frame.item.get("finish_reason"))
    return Image.open(io.BytesIO(base64.b64decode(data))).size


async def test_edits_without_a_size(client: Client) -> None:
    """An input of odd size gives a picture of about its aspect."""
    answer = await client.make(EDITS, image=b64(png(101, 203)), size="auto", strength=0.5, steps=2)
    width, height = answer.picture().size
    assert abs(height / width - 203 / 101) < 0.3


# -- images -------------------------------------------------------------------------------------------


def bomb() -> bytes:
    """A PNG of 30000 x 30000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BAD_IMAGES = {
    "truncated": png(64, 64)[:5000],
    "bomb": bomb(),
    "too narrow": png(1, 3000),
    "too narrow by far": png(8, 3000),
    "text": b"this is a text file\n" * 10,
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='64' height='64'/>",
    "rubbish behind a PNG signature": png(64, 64)[:40] + bytes(range(256)) * 20,
    "float TIFF": encoded(Image.new("F", (64, 64), float("nan")), "TIFF"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("kind", BAD_IMAGES)
async def test_images_that_are_none(client: Client, kind: str, field: str, stream: bool) -> None:
    """Each is a plain 400 `Invalid image`, never a stream, in JSON and as an upload."""
    images = {"image": png(64, 64), field: BAD_IMAGES[kind]}
    fields = {name: b64(data) for name, data in images.items()}
    answer = await client.make(EDITS, **fields, stream=stream)
    assert (answer.status, answer.code, answer.message) == (400, "invalid_image", "Invalid image")
    form = [("prompt", "x"), ("stream", str(stream).lower())]
    answer = await client.send("POST", EDITS, data=multipart(form, images))
    assert (answer.status, answer.code) == (400, "invalid_image")


def animated() -> bytes:
    frames = [noise(64, 64, seed=seed) for seed in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


GOOD_IMAGES = {
    "animated GIF": animated(),
    "CMYK JPEG": encoded(noise(64, 64).convert("CMYK"), "JPEG"),
    "16-bit PNG": encoded(Image.fromarray(np.full((64, 64), 40000, np.uint16)), "PNG"),
    "1-bit PNG": encoded(noise(64, 64).convert("1"), "PNG"),
    "palette PNG": encoded(noise(64, 64).convert("P"), "PNG"),
    "8:1": png(512, 64),
    "smaller than a block": png(9, 9),
}


@pytest.mark.parametrize("kind", GOOD_IMAGES)
async def test_images_of_odd_kinds(client: Client, kind: str) -> None:
    """Each is taken as an input and gives a picture of the size asked for."""
    answer = await client.make(EDITS, image=b64(GOOD_IMAGES[kind]), strength=0.5, steps=2)
    assert answer.picture().size == (64, 64)


# -- bodies -------------------------------------------------------------------------------------------

BOUNDARY = "frontier"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


def multipart(fields: list[tuple[str, str]], images: dict[str, bytes]) -> Any:
    import aiohttp

    form = aiohttp.FormData()
    for name, value in fields:
        form.add_field(name, value)
    for name, data in images.items():
        form.add_field(name, data, filename=f"{name}.png", content_type="image/png")
    return form


DEEP = "[" * 100_000
RUBBISH = {
    "deep list": DEEP.encode(),
    "deep object": b'{"a":' * 100_000,
    "deep value": f'{{"prompt": "x", "steps": {DEEP}'.encode(),
    "deep and closed": f'{{"prompt": "x", "n": {"[" * 5000}{"]" * 5000}}}'.encode(),
    "deep text of loras": json.dumps({"prompt": "x", "lora": DEEP}).encode(),
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "cut": b'{"prompt": "x',
    "list": b"[]",
    "nothing": b"",
    "number": b"1",
}


@pytest.mark.parametrize("kind", RUBBISH)
async def test_bodies_that_are_no_request(client: Client, kind: str) -> None:
    """Each is refused as the client's fault, with JSON."""
    answer = await client.raw(RUBBISH[kind])
    assert answer.status in (400, 415), answer.body
    assert answer.body["error"]["type"] == "invalid_request_error"


def part(head: str, data: bytes = b"x") -> bytes:
    return f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FORMS = {
    "nothing": b"",
    "rubbish": bytes(range(256)) * 100,
    "no end": part('Content-Disposition: form-data; name="prompt"'),
    "no name": part("Content-Disposition: form-data") + END,
    "no header": part("") + END,
    "cut in a header": f"--{BOUNDARY}\r\nContent-Dispo".encode(),
    "endless header": part("X: " + "y" * 100_000) + END,
    "wrong boundary": b"--other\r\n\r\nx\r\n--other--\r\n",
    "not UTF-8": part('Content-Disposition: form-data; name="prompt"', b"\xff\xfe") + END,
    "many parts": part('Content-Disposition: form-data; name="a"') * 500 + END,
    "unknown transfer encoding": part(
        'Content-Disposition: form-data; name="prompt"\r\nContent-Transfer-Encoding: rot13'
    )
    + END,
    "nested": part(
        'Content-Disposition: form-data; name="a"\r\nContent-Type: multipart/mixed; boundary=inner',
        b"--inner\r\n\r\nx\r\n--inner--",
    )
    + END,
    "deep options": part('Content-Disposition: form-data; name="stream_options"', DEEP.encode()) + END,
    "deep loras": part('Content-Disposition: form-data; name="prompt"')
    + part('Content-Disposition: form-data; name="lora"', DEEP.encode())
    + END,
}


@pytest.mark.parametrize("kind", FORMS)
async def test_forms_that_are_none(client: Client, kind: str) -> None:
    """Multipart rubbish is the client's fault, and ends."""
    answer = await client.send("POST", EDITS, data=FORMS[kind], headers=FORM)
    assert 400 <= answer.status < 500, answer.body
    assert answer.body["error"]["type"] == "invalid_request_error"


async def test_a_form_without_a_boundary(client: Client) -> None:
    """So is a form that does not say where its parts end."""
    headers = {"Content-Type": "multipart/form-data"}
    answer = await client.send("POST", EDITS, data=b"x", headers=headers)
    assert (answer.status, answer.code) == (400, "invalid_request")
