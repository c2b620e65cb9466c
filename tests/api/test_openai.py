"""The images API as the official client and plain HTTP clients use it, on a real server and engine."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from openai import OpenAI
from openai.types import Image as ImageItem
from openai.types import ImagesResponse
from PIL import Image

from gguf_imagegen.pictures import decode
from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, eventually, noise, picture, png
from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import QuickEngine

LEFT = (slice(None), slice(0, 32))
RIGHT = (slice(None), slice(32, 64))


@pytest.fixture
def client(server: ServerProcess) -> Iterator[OpenAI]:
    """The official client."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def generate(client: OpenAI, **fields: Any) -> ImagesResponse:
    """A small generation; everything is sent in the body as it stands."""
    body = {**SMALL, **fields}
    return client.images.generate(prompt=body.pop("prompt"), extra_body=body)


def items(answer: ImagesResponse) -> list[ImageItem]:
    assert answer.data is not None
    return answer.data


def only(answer: ImagesResponse) -> ImageItem:
    (item,) = items(answer)
    return item


def extra(model: Any, name: str) -> Any:
    """A field that the official types do not know."""
    return model.model_extra[name]


# -- what comes back ----------------------------------------------------------------------------------


def test_b64_is_a_picture_of_the_asked_size(client: OpenAI) -> None:
    """`b64_json` alone comes when asked for, and is a PNG of exactly the size, aligned or not."""
    item = only(generate(client, response_format="b64_json", size="72x65"))
    assert item.url is None
    made = picture(item.b64_json)
    assert (made.format, made.size) == ("PNG", (72, 65))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_url_serves_the_file(client: OpenAI, output_format: str) -> None:
    """`url` alone comes when asked for; it serves the format with its content type and no sniffing."""
    item = only(generate(client, response_format="url", output_format=output_format))
    assert item.b64_json is None
    assert item.url is not None
    with urllib.request.urlopen(item.url) as answer:
        assert answer.headers["Content-Type"] == f"image/{output_format}"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert picture(answer.read()).format == output_format.upper()


def test_both_forms_hold_the_same_bytes(client: OpenAI) -> None:
    """Without `response_format` an image comes as base64 and as a URL, and the two agree."""
    item = only(generate(client))
    assert item.url is not None
    with urllib.request.urlopen(item.url) as answer:
        assert picture(answer.read()).tobytes() == picture(item.b64_json).tobytes()


def test_output_compression_makes_smaller_files(client: OpenAI) -> None:
    """`output_compression` is the quality of a JPEG."""
    sizes = [
        len(only(generate(client, seed=1, output_format="jpeg", output_compression=q)).b64_json or "")
        for q in (10, 95)
    ]
    assert sizes[0] < sizes[1]


def test_images_of_a_batch_are_those_of_the_seeds_alone(client: OpenAI) -> None:
    """n=3 with seed 5 gives the files of seeds 5, 6 and 7, byte for byte."""
    batch = items(generate(client, n=3, seed=5))
    alone = [only(generate(client, seed=seed)) for seed in (5, 6, 7)]
    assert [item.b64_json for item in batch] == [item.b64_json for item in alone]
    assert len({item.b64_json for item in batch}) == 3
    assert [extra(item, "seed") for item in batch] == [5, 6, 7]
    assert [extra(item, "index") for item in batch] == [0, 1, 2]


@pytest.mark.parametrize("seed", [None, -1, "null"])
def test_random_seeds_are_told_and_can_be_repeated(client: OpenAI, seed: object) -> None:
    """A null or negative seed is random; the answer names it, and with it the image comes again."""
    first, second = only(generate(client, seed=seed)), only(generate(client, seed=seed))
    assert extra(first, "seed") != extra(second, "seed")
    again = only(generate(client, seed=extra(first, "seed")))
    assert again.b64_json == first.b64_json


async def test_answer_has_exactly_the_promised_fields(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """Section 3 of the contract: names and values of every field, and the job's id as a header."""
    async with session.post(server.url + GENERATIONS, json={**SMALL, "seed": 43, "cfg_scale": 1.5}) as answer:
        body = await answer.json()
        assert answer.headers["X-Job-Id"] == body["id"]
    (item,) = body.pop("data")
    usage = body.pop("usage")
    assert isinstance(body.pop("created"), int)
    assert body.pop("id").startswith("job_")
    assert body == {
        "model": "tiny-random",
        "size": "64x64",
        "output_format": "png",
        "quality": "auto",
        "background": "opaque",
        "warnings": [],
    }
    assert item.pop("b64_json")
    assert re.fullmatch(
        re.escape(server.url) + r"/v1/images/files/\d{8}-\d{6}-[\w-]{22,}\.png", item.pop("url")
    )
    assert item == {
        "revised_prompt": None,
        "index": 0,
        "seed": 43,
        "variation_seed": None,
        "sampler": "euler",
        "schedule": "discrete",
        "steps": 2,
        "cfg_scale": 1.5,
        "width": 64,
        "height": 64,
        "finish_reason": "stop",
    }
    measured = {key: usage.pop(key) for key in list(usage) if key.startswith(("time", "generation"))}
    assert usage == {
        "input_tokens": 0,
        "output_tokens": 0,
        "total_tokens": 0,
        "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    }
    assert set(measured) == {"time_to_process_ms", "time_per_generation_ms", "generation_per_second"}
    assert all(value > 0 for value in measured.values())
    assert measured["time_per_generation_ms"] * measured["generation_per_second"] == pytest.approx(1000, 0.01)


def test_png_carries_its_parameters_and_no_path(client: OpenAI, model_dir: Path) -> None:
    """The file holds the text that AUTOMATIC1111 tools read, and nothing about this machine."""
    item = only(generate(client, prompt="ein Bär", negative_prompt="fog", seed=9, response_format="url"))
    assert item.url is not None
    with urllib.request.urlopen(item.url) as answer:
        data: bytes = answer.read()
    text = decode.read_parameters(data)
    assert text is not None
    assert text.startswith(
        "ein Bär\nNegative prompt: fog\nSteps: 2, Sampler: euler, Schedule type: discrete,"
    )
    assert "Seed: 9, Size: 64x64, Model: tiny-random," in text
    for path in (str(model_dir), str(Path.home()), str(Path.cwd())):
        assert path.encode() not in data


# -- edits --------------------------------------------------------------------------------------------


def alpha_mask() -> Image.Image:
    """OpenAI's convention: transparent = repaint."""
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    return mask


def white_mask() -> Image.Image:
    """AUTOMATIC1111's convention: white = repaint."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    return mask


def opaque_rgba_mask() -> Image.Image:
    """White = repaint too, although there is an alpha channel: it says nothing."""
    return white_mask().convert("RGBA")


@pytest.mark.parametrize("mask", [alpha_mask, white_mask, opaque_rgba_mask])
def test_edit_changes_what_the_mask_says_and_nothing_else(
    client: OpenAI, mask: Callable[[], Image.Image]
) -> None:
    """In every mask convention kept pixels are the input's own bytes and masked ones are new."""
    answer = client.images.edit(
        image=png(noise(64, 64)),
        mask=png(mask()),
        prompt="a cat",
        extra_body={"size": "64x64", "steps": 2, "seed": 1},
    )
    before, after = np.asarray(noise(64, 64)), np.asarray(picture(only(answer).b64_json))
    assert after.shape == before.shape
    assert np.array_equal(after[RIGHT], before[RIGHT])
    assert np.mean(np.any(after[LEFT] != before[LEFT], axis=-1)) > 0.9


def test_transparent_input_is_its_own_mask(client: OpenAI) -> None:
    """Without a mask the input's transparent pixels are repainted and the opaque ones kept."""
    before = noise(64, 64).convert("RGBA")
    before.putalpha(alpha_mask().getchannel("A"))
    answer = client.images.edit(
        image=png(before), prompt="a cat", extra_body={"size": "64x64", "steps": 2, "seed": 1}
    )
    after = np.asarray(picture(only(answer).b64_json))
    assert np.array_equal(after[RIGHT], np.asarray(noise(64, 64))[RIGHT])
    assert np.mean(np.any(after[LEFT] != 255, axis=-1)) > 0.9


async def test_one_edit_in_every_wrapping(
    server: ServerProcess, session: aiohttp.ClientSession, client: OpenAI
) -> None:
    """The SDK's form, raw forms with `image[]` or `image[0]`, and JSON all make the same file."""
    image = png(noise(64, 64))
    sdk = client.images.edit(image=image, prompt="a cat", extra_body={"size": "64x64", "steps": 1, "seed": 3})

    def form(name: str) -> aiohttp.FormData:
        made = aiohttp.FormData()
        made.add_field(name, image, filename="C:\\pictures\\a.png", content_type="application/octet-stream")
        for key, value in {"prompt": "a cat", "size": "64x64", "steps": "1", "seed": "3"}.items():
            made.add_field(key, value)
        return made

    fields = {"prompt": "a cat", "size": "64x64", "steps": 1, "seed": 3}
    bare = data_url(image).partition(",")[2]
    bodies: list[dict[str, Any]] = [
        {"data": form("image[]")},
        {"data": form("image[0]")},
        {"data": form("images")},
        {"json": {**fields, "image": data_url(image)}},
        {"json": {**fields, "image": [bare]}},
        {"json": {**fields, "images": [{"image_url": data_url(image)}]}},
        {"json": {**fields, "image[]": [data_url(image)]}},
    ]
    for body in bodies:
        async with session.post(server.url + EDITS, **body) as answer:
            assert answer.status == 200, await answer.text()
            (item,) = (await answer.json())["data"]
            assert item["b64_json"] == only(sdk).b64_json


def test_edit_follows_the_input_in_its_aspect(client: OpenAI) -> None:
    """Without a size the input's aspect is kept at about the model's number of pixels."""
    answer = client.images.edit(image=png(noise(400, 200)), prompt="a cat", extra_body={"steps": 1})
    width, height = picture(only(answer).b64_json).size
    assert width / height == pytest.approx(2, rel=0.1)
    assert width * height == pytest.approx(128 * 128, rel=0.2)


@pytest.mark.parametrize(
    "image", ["http://127.0.0.1:9/a.png", "https://example.com/a.png", "file:///etc/hostname"]
)
@pytest.mark.parametrize("field", ["image", "mask"])
def test_image_urls_are_never_fetched(client: OpenAI, image: str, field: str) -> None:
    """An image given by an address is refused: the server fetches nothing."""
    fields = {"image": data_url(png(noise(64, 64))), field: image}
    with pytest.raises(openai.BadRequestError, match=r"fetches no URLs|Invalid image"):
        client.post(EDITS.removeprefix("/v1"), body={"prompt": "a cat", **fields}, cast_to=ImagesResponse)


# -- streams through the client -----------------------------------------------------------------------


def test_streamed_generation_has_partials_then_the_image(client: OpenAI) -> None:
    """partial_images=2 gives exactly partials 0 and 1, then the very file of a waiting request."""
    waited = only(generate(client, steps=4, seed=8))
    with client.images.generate(
        prompt="a cat", stream=True, partial_images=2, extra_body={**SMALL, "steps": 4, "seed": 8}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    indices = [e.partial_image_index for e in events if e.type == "image_generation.partial_image"]
    assert indices == [0, 1]
    assert picture(events[0].b64_json).tobytes() != picture(events[1].b64_json).tobytes()
    assert events[2].b64_json == waited.b64_json
    assert (events[2].quality, events[2].background, events[2].output_format) == ("auto", "opaque", "png")


def test_streamed_edit_has_partials_then_the_image(client: OpenAI) -> None:
    """An edit streams in the same way under its own event names."""
    with client.images.edit(
        image=png(noise(64, 64)),
        prompt="a cat",
        stream=True,
        partial_images=2,
        extra_body={"size": "64x64", "steps": 4, "seed": 8},
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == [
        "image_edit.partial_image",
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    assert [e.partial_image_index for e in events if e.type == "image_edit.partial_image"] == [0, 1]
    assert picture(events[2].b64_json).size == (64, 64)


def test_streamed_batch_completes_each_image(client: OpenAI) -> None:
    """n=2 without partials gives two completed events, in order, and no others."""
    with client.images.generate(
        prompt="a cat", stream=True, extra_body={**SMALL, "n": 2, "seed": 5}
    ) as stream:
        events = list(stream)
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    assert [extra(event, "seed") for event in events] == [5, 6]


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"prompt": None}, "invalid_request", "prompt"),
        ({"prompt": "a\0b"}, "invalid_request", "prompt"),
        ({"prompt": "x" * 8001}, "prompt_too_long", "prompt"),
        ({"negative_prompt": "x" * 8001}, "prompt_too_long", "negative_prompt"),
        ({"n": 11}, "invalid_request", "n"),
        ({"size": "9x99"}, "invalid_size", "size"),
        ({"size": "100000x64"}, "invalid_size", "size"),
        ({"size": "huge"}, "invalid_size", "size"),
        ({"size": "512x63"}, "invalid_size", "size"),
        ({"steps": "many"}, "invalid_request", "steps"),
        ({"steps": 151}, "invalid_request", "steps"),
        ({"sampler": "eular_a"}, "unknown_sampler", "sampler"),
        ({"scheduler": "karas"}, "unknown_sampler", "scheduler"),
        ({"seed": 2**53}, "invalid_request", "seed"),
        ({"partial_images": 4}, "invalid_request", "partial_images"),
        ({"stream_options": {"chunk_size": 1}}, "invalid_request", "stream_options"),
        ({"output_format": "tiff"}, "invalid_request", "output_format"),
        ({"lora": [{"name": "../../etc/passwd"}]}, "invalid_request", "lora"),
        ({"mask": "AAAA"}, "invalid_request", "mask"),
        ({"image": "AAAA"}, "invalid_image", "image"),
    ],
)
def test_bad_requests_are_told_by_code_and_field(
    client: OpenAI, fields: dict[str, object], code: str, param: str
) -> None:
    """Every kind of wrong field is a BadRequestError that names the field and is not worth a retry."""
    with pytest.raises(openai.BadRequestError) as caught:
        generate(client, **fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    body = caught.value.response.json()
    assert set(body) == {"error", "detail"}
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_unknown_sampler_names_the_nearest_and_all_valid(client: OpenAI) -> None:
    """A misspelt name is answered with what was probably meant and what there is."""
    with pytest.raises(openai.BadRequestError, match=r"did you mean 'euler_a'.*res_multistep"):
        generate(client, sampler="eular_a")


@pytest.mark.parametrize(
    ("model", "code"), [("no-such-model", "model_not_found"), ("sd-turbo", "model_not_downloaded")]
)
def test_models_that_cannot_be_had_are_not_found(client: OpenAI, model: str, code: str) -> None:
    """An unknown model and one whose files are missing are NotFoundErrors with codes of their own."""
    with pytest.raises(openai.NotFoundError) as caught:
        generate(client, model=model)
    assert caught.value.code == code


def test_damaged_image_is_a_plain_error_even_for_a_stream(client: OpenAI) -> None:
    """What is wrong before the first byte is an ordinary 400 with the words llama-box clients compare."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=png(noise(64, 64))[:500], prompt="a cat", stream=True)
    error = caught.value.response.json()["error"]
    assert (error["message"], error["type"]) == ("Invalid image", "invalid_request_error")
    assert caught.value.code == "invalid_image"


def test_edit_without_an_image_is_refused(client: OpenAI) -> None:
    """The edit route needs something to edit."""
    with pytest.raises(openai.BadRequestError, match="at least one image"):
        client.post("/images/edits", body={"prompt": "a cat"}, cast_to=ImagesResponse)


async def test_variations_need_only_an_image(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """An upload without a prompt comes back changed, at the model's size."""
    before = noise(128, 128)
    form = aiohttp.FormData({"steps": "2", "response_format": "b64_json"})
    form.add_field("image", png(before), filename="x.png")
    async with session.post(f"{server.url}/v1/images/variations", data=form) as answer:
        (item,) = (await answer.json())["data"]
    after = picture(item["b64_json"])
    assert (answer.status, after.size) == (200, before.size)
    assert after.tobytes() != before.tobytes()


async def test_respond_async(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """Prefer: respond-async answers 202 at once with the job, whose page tells the end."""
    headers = {"Prefer": "respond-async, wait=5"}
    async with session.post(f"{server.url}{GENERATIONS}", json=SMALL, headers=headers) as answer:
        job = await answer.json()
    assert (answer.status, job["object"]) == (202, "job")
    assert answer.headers["Location"] == f"{server.url}/v1/jobs/{job['id']}"

    async def look() -> bool:
        async with session.get(answer.headers["Location"]) as page:
            return bool((await page.json())["status"] == "succeeded")

    await eventually("the job succeeds", look)


# -- guidance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["guidance_scale", "true_cfg_scale", "cfg_scale"])
async def test_no_guidance_obeys_the_prompt(
    server: ServerProcess, session: aiohttp.ClientSession, name: str
) -> None:
    """A scale of 0 is one of 1, in pixels and in words; the negative prompt, which nothing reads, is said."""

    async def made(**fields: Any) -> tuple[bytes, Any]:
        body = {**SMALL, "seed": 7, "response_format": "b64_json", "negative_prompt": "rain", **fields}
        async with session.post(server.url + GENERATIONS, json=body) as answer:
            content = await answer.json()
        assert answer.status == 200, content
        (item,) = content["data"]
        assert item["cfg_scale"] == 1
        return picture(item["b64_json"]).tobytes(), content["warnings"]

    unread = "negative_prompt: has no effect without guidance (cfg_scale 1)"
    cat, warnings = await made(**{name: 0})
    assert warnings == ["cfg_scale: 0 means no guidance; 1 was used", unread]
    assert (cat, [unread]) == await made(cfg_scale=1)
    assert cat != (await made(**{name: 0}, prompt="a red house by the sea"))[0]


# -- names and presets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "key", "value"),
    [
        *(
            ({name: 3}, "steps", 3)
            for name in ("sample_steps", "sampling_steps", "num_inference_steps", "step")
        ),
        *(
            ({name: "heun"}, "sampler", "heun")
            for name in ("sample_method", "sampler_name", "sampling_method", "sampler_index")
        ),
        *(({name: "karras"}, "schedule", "karras") for name in ("schedule_method", "scheduler")),
        *(
            ({name: 2.5}, "cfg_scale", 2.5)
            for name in ("true_cfg_scale", "txt_cfg", "guidance_scale", "cfg_scale")
        ),
        ({"rng_seed": 12}, "seed", 12),
        ({"seed": "12"}, "seed", 12),
        ({"seed": None, "rng_seed": 12}, "seed", 12),
        ({"num_inference_steps": 3, "sample_steps": None}, "steps", 3),
        ({"width": 80, "height": 96, "size": None}, "width", 80),
        ({"size": "80*96"}, "height", 96),
        ({"sampler": "EULER_A"}, "sampler", "euler_a"),
        ({"stream": None, "lora": None, "vae_tiling": None, "n": None, "steps": 1}, "steps", 1),
    ],
)
async def test_every_alias_counts(
    running: RunningApp, fields: dict[str, object], key: str, value: object
) -> None:
    """Each name of other servers means its canonical field; null means "not said" in all of them."""
    base = {name: known for name, known in SMALL.items() if name != key}
    async with running(engine=QuickEngine) as app:
        status, body = await app.post(GENERATIONS, **{**base, **fields})
    assert status == 200, body
    (item,) = body["data"]
    assert item[key] == value
    assert body["warnings"] == []


@pytest.mark.parametrize("name", ["batch_count", "num_images_per_prompt"])
async def test_aliases_of_n_count(running: RunningApp, name: str) -> None:
    """`n` has aliases too."""
    async with running(engine=QuickEngine) as app:
        _, body = await app.post(GENERATIONS, **SMALL, **{name: 2})
    assert len(body["data"]) == 2


@pytest.mark.parametrize(
    ("fields", "steps"),
    [
        ({"quality": "low"}, 8),
        ({"quality": "medium"}, 20),
        ({"quality": "standard"}, 20),
        ({"quality": "auto"}, 20),
        ({"quality": "high"}, 30),
        ({"quality": "hd"}, 30),
        ({"quality": "xhigh"}, 30),
        ({"quality": "max"}, 30),
        ({}, 20),
        ({"quality": "low", "steps": 3}, 3),
    ],
)
async def test_quality_sets_the_steps(running: RunningApp, fields: dict[str, Any], steps: int) -> None:
    """A quality is a number of steps from the catalog, at most its highest preset; `steps` wins over it."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.post(GENERATIONS, prompt="a cat", **fields)
    assert status == 200, body
    assert body["data"][0]["steps"] == steps
    assert body["quality"] in ("auto", "low", "medium", "high")


def test_unknown_and_powerless_fields_are_warned_of(client: OpenAI) -> None:
    """Unknown keys and those the engine cannot honour are taken with a warning; harmless ones silently."""
    answer = generate(client, colour="red", style="vivid", user="me", moderation="low")
    assert extra(answer, "warnings") == [
        "unknown field 'colour' was ignored",
        "style: no effect; say it in the prompt",
    ]
