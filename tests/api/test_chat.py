"""Pictures by chat, and vLLM-Omni's other recipes, as its pages have them and through the official client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.api.client import GENERATIONS, SMALL, data_url, job_in_state, noise, picture, png, read_stream
from tests.api.recipes import ours, python, shell
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import CrashesAtStep, QuickEngine, SlowEngine

pytestmark = pytest.mark.posix

CHAT = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "A beautiful landscape painting"}]


@pytest_asyncio.fixture
async def client(served: ServerProcess) -> AsyncIterator[AsyncOpenAI]:
    """The official client."""
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands, with the pictures that the recipes name."""
    for name in ("input.png", "xx.png"):
        (tmp_path / name).write_bytes(png(noise(64, 64)))
    return tmp_path


def small(recipe: str) -> str:
    """The recipe at a size and a number of steps that the tiny model makes in no time."""
    return recipe.replace("1024", "64").replace(": 50", ": 2").replace("=50", "=2")


# -- recipes ------------------------------------------------------------------------------------------
# https://github.com/vllm-project/vllm-omni/tree/main/examples/online_serving/text_to_image and image_to_image


TEXT_TO_IMAGE = """
curl -s http://localhost:8091/v1/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "messages": [
      {"role": "user", "content": "A beautiful landscape painting"}
    ],
    "extra_body": {
      "height": 1024,
      "width": 1024,
      "num_inference_steps": 50,
      "true_cfg_scale": 4.0,
      "seed": 42
    }
  }' | jq -r '.choices[0].message.content[0].image_url.url' | cut -d',' -f2- | base64 -d > output.png
"""
IMAGE_TO_IMAGE = """
IMG_B64=$(base64 -w0 input.png)

cat <<EOF > request.json
{
  "messages": [{
    "role": "user",
    "content": [
      {"type": "text", "text": "Convert this image to watercolor style"},
      {"type": "image_url", "image_url": {"url": "data:image/png;base64,$IMG_B64"}}
    ]
  }],
  "extra_body": {
    "height": 1024,
    "width": 1024,
    "num_inference_steps": 50,
    "guidance_scale": 1,
    "seed": 42
  }
}
EOF

curl -s http://localhost:8092/v1/chat/completions   -H "Content-Type: application/json"   -d @request.json | jq -r '.choices[0].message.content[0].image_url.url' | cut -d',' -f2 | base64 -d > output.png
"""  # noqa: E501
SDK = """
from openai import OpenAI
import base64

client = OpenAI(base_url="http://localhost:8091/v1", api_key="none")

response = client.chat.completions.create(
    model="Qwen/Qwen-Image",
    messages=[{"role": "user", "content": "A beautiful landscape painting"}],
    extra_body={
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 50,
        "true_cfg_scale": 4.0,
        "seed": 42,
    },
)

img_url = response.choices[0].message.content[0]["image_url"]["url"]
_, b64_data = img_url.split(",", 1)
with open("output.png", "wb") as f:
    f.write(base64.b64decode(b64_data))
"""  # the page reads `content[0].image_url.url`, but the client gives content parts as dicts
# docs/serving/image_generation_api.md and image_edit_api.md of the same repository
IMAGES = """
curl -X POST http://localhost:8000/v1/images/generations \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "a dragon laying over the spine of the Green Mountains of Vermont",
    "size": "1024x1024",
    "seed": 42
  }' | jq -r '.data[0].b64_json' | base64 -d > output.png
"""
IMAGES_SDK = """
from openai import OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")

response = client.images.generate(
    model="Qwen/Qwen-Image",
    prompt="a horse jumping over a fence nearby a babbling brook",
    n=1,
    size="1024x1024",
    response_format="b64_json"
)
import base64
open("output.png", "wb").write(base64.b64decode(response.data[0].b64_json))
"""
EDITS = """
curl -s -D >(grep -i x-request-id >&2) \\
  -o >(jq -r '.data[0].b64_json' | base64 --decode > output.png) \\
  -X POST "http://localhost:8000/v1/images/edits" \\
  -F "model=xxx" \\
  -F "image=@./xx.png" \\
  -F "prompt='this bear is wearing sportwear. holding a basketball, and bending one leg.'" \\
  -F "size=1024x1024" \\
  -F "output_format=png"
"""
EDITS_SDK = """
import base64
from openai import OpenAI
client = OpenAI(
    api_key="None",
    base_url="http://localhost:8000/v1"
)

input_image_url = "data:image/png;base64," + base64.b64encode(open("input.png", "rb").read()).decode()

result = client.images.edit(
    image=[],
    model="Qwen-Image-Edit-2511",
    prompt="Change the bears in the two input images into walking together.",
    size='512x512',
    stream=False,
    output_format='jpeg',
    extra_body={
        "url": [input_image_url],
        "num_inference_steps": 50,
        "guidance_scale": 1,
        "seed": 777,
    }
)

with open("output.png", "wb") as f:
    f.write(base64.b64decode(result.data[0].b64_json))
"""  # the page names its picture by an address, which this server does not fetch
RECIPES = [TEXT_TO_IMAGE, IMAGE_TO_IMAGE, SDK, IMAGES, IMAGES_SDK, EDITS, EDITS_SDK]


@pytest.mark.parametrize("recipe", RECIPES)
async def test_recipes_write_their_picture(
    quick: App, served: ServerProcess, folder: Path, recipe: str
) -> None:
    """Each recipe works as it stands, and at a small size against the real engine."""
    run = python if "import OpenAI" in recipe else shell
    size = 512 if recipe is EDITS_SDK else 1024
    for text, url, side in ((recipe, quick.url, size), (small(recipe), served.url, min(size, 64))):
        said = await run(ours(text.replace("512x512", f"{side}x{side}"), url), folder)
        made = picture((folder / "output.png").read_bytes())
        assert made.size == (side, side)
        assert made.format == ("JPEG" if recipe is EDITS_SDK else "PNG")
        (folder / "output.png").unlink()
        assert ("x-request-id" in said.lower()) == (recipe is EDITS)


# -- the answer ---------------------------------------------------------------------------------------


async def test_answer_has_vllm_omnis_shape(served: ServerProcess, session: aiohttp.ClientSession) -> None:
    """The content is a list of pictures; beside vLLM-Omni's fields it says how each was made."""
    body = {"messages": ASKED, "size": "64x64", "num_outputs_per_prompt": 2, "seed": 7, "temperature": 0.2}
    async with session.post(f"{served.url}{CHAT}?content=parts", json=body) as answer:
        made = await answer.json()
        assert answer.headers["X-Job-Id"].startswith("job_")
    assert made["id"].startswith("chatcmpl-")
    assert (made["object"], made["model"], made["warnings"]) == ("chat.completion", "tiny-random", [])
    (choice,) = made["choices"]
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")
    assert choice["message"]["role"] == "assistant"
    for part in choice["message"]["content"]:
        assert set(part) == {"type", "image_url"}
        head, _, data = part["image_url"]["url"].partition(",")
        assert head == "data:image/png;base64"
        assert picture(data).size == (64, 64)
    assert [item["seed"] for item in made["data"]] == [7, 8]
    assert made["usage"]["total_tokens"] == 0
    assert made["usage"]["generation_per_second"] > 0


async def test_extras_count_at_both_levels(served: ServerProcess, session: aiohttp.ClientSession) -> None:
    """A field means the same beside `messages` and in `extra_body`, which wins: what the images API means."""
    fields = {
        "width": 72, "height": 64, "num_inference_steps": 3, "true_cfg_scale": 2.0, "seed": 5,
        "negative_prompt": "fog", "output_format": "webp",
    }  # fmt: skip
    async with session.post(served.url + GENERATIONS, json={"prompt": "a cat", **fields}) as answer:
        (expected,) = (await answer.json())["data"]
    for body in (fields, {"extra_body": fields}, {"seed": 1, "extra_body": fields}):
        message = {"role": "user", "content": "a cat"}
        async with session.post(served.url + CHAT, json={"messages": [message], **body}) as answer:
            made = await answer.json()
        url = made["choices"][0]["message"]["content"][0]["image_url"]["url"]
        assert url == f"data:image/webp;base64,{expected['b64_json']}"


@pytest.mark.parametrize(
    "parts",
    [
        lambda url: [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": url}}],
        lambda url: [{"type": "image_url", "image_url": url}, {"type": "text", "text": "a cat"}],
        lambda url: [{"text": "a cat"}, {"image": url.partition(",")[2]}],
        lambda url: [{"type": "input_text", "text": "a cat"}, {"type": "input_image", "image_url": url}],
    ],
)
async def test_image_parts_are_edited(
    served: ServerProcess, session: aiohttp.ClientSession, parts: Any
) -> None:
    """The last user message alone counts; its pictures are edited as the images API edits them."""
    url = data_url(png(noise(64, 64)))
    fields = {"size": "64x64", "steps": 2, "seed": 3, "strength": 0.5}
    async with session.post(
        f"{served.url}/v1/images/edits", json={"prompt": "a cat", "image": url, **fields}
    ) as answer:
        (expected,) = (await answer.json())["data"]
    messages = [
        {"role": "system", "content": "You paint."},
        {"role": "user", "content": "a dog"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": parts(url)},
    ]
    async with session.post(served.url + CHAT, json={"messages": messages, "extra_body": fields}) as answer:
        made = await answer.json()
    (part,) = made["choices"][0]["message"]["content"]
    assert part["image_url"]["url"].partition(",")[2] == expected["b64_json"]


# -- streams ------------------------------------------------------------------------------------------


async def test_stream_through_the_client(client: AsyncOpenAI) -> None:
    """Role, one chunk a picture, stop, usage: nothing else, and the same pictures as without a stream."""
    extra = {"size": "64x64", "steps": 3, "seed": 3, "num_outputs_per_prompt": 2}
    parts = {"content": "parts"}
    asked: Any = {"model": "tiny-random", "messages": ASKED, "extra_body": extra, "extra_query": parts}
    waited = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    *choices, usage = chunks
    assert [chunk.choices[0].delta.role for chunk in choices] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in choices] == [None, None, None, "stop"]
    pictures: list[Any] = [chunk.choices[0].delta.content for chunk in choices]
    expected: Any = waited.choices[0].message.content
    assert pictures == ["", expected[:1], expected[1:], None]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.total_tokens == 0
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


async def test_pictures_are_beside_the_words(client: AsyncOpenAI) -> None:
    """OpenRouter's shape, waited for and streamed: a line of text, and `images` has the pictures."""
    extra = {"size": "64x64", "steps": 2, "seed": 7, "modalities": ["image", "text"]}
    asked: Any = {"model": "tiny-random", "messages": ASKED, "extra_body": extra}
    waited = await client.chat.completions.create(**asked)
    message: Any = waited.choices[0].message
    assert message.content == "A picture of 64x64, seed 7."
    (image,) = message.images
    assert (image["type"], image["index"]) == ("image_url", 0)
    assert picture(image["image_url"]["url"].partition(",")[2]).size == (64, 64)
    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
    deltas: list[Any] = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == message.content
    assert [each for delta in deltas for each in getattr(delta, "images", [])] == [image]


async def test_stream_tells_progress_in_comments(
    served: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """Every step is a comment, so that the content stays clean; the end is [DONE]."""
    body = {"messages": ASKED, "size": "64x64", "steps": 4, "stream": True, "foo": 1}
    async with session.post(served.url + CHAT, json=body) as answer:
        assert answer.content_type == "text/event-stream"
        stream = read_stream(await answer.text())
    steps = [words.split()[1] for words in stream.comments if words.startswith("progress ")]
    assert list(dict.fromkeys(steps)) == ["0/4", "1/4", "2/4", "3/4", "4/4"]
    assert len(stream.events) == 4
    assert stream.events[2].data["warnings"] == ["unknown field 'foo' was ignored"]
    assert stream.events[-1].data == "[DONE]"
    assert all(event.event is None and event.id is None for event in stream.events)


async def test_failure_in_a_stream_reaches_the_client(running: RunningApp) -> None:
    """A job that fails after the 200 ends the stream with an error that the client raises."""
    async with (
        running(engine=CrashesAtStep) as app,
        AsyncOpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0) as client,
    ):
        asked: Any = {"model": "tiny-random", "messages": ASKED, "stream": True}
        stream = await client.chat.completions.create(**asked, extra_body={"steps": 3})
        with pytest.raises(openai.APIError, match="stopped unexpectedly"):
            [chunk async for chunk in stream]


async def test_client_that_leaves_cancels(running: RunningApp) -> None:
    """A chat that nobody waits for is not finished."""
    async with running(engine=SlowEngine) as app:
        body = {"messages": ASKED, "size": "64x64", "steps": 50, "stream": True}
        async with app.session.post(app.url + CHAT, json=body) as answer:
            await answer.content.readany()
            await job_in_state(app, "running")
            answer.close()
        await job_in_state(app, "cancelled")


async def test_respond_async(running: RunningApp) -> None:
    """`Prefer: respond-async` answers at once, here too."""
    async with (
        running(engine=QuickEngine) as app,
        app.session.post(
            app.url + CHAT, json={"messages": ASKED}, headers={"Prefer": "respond-async"}
        ) as answer,
    ):
        assert answer.status == 202
        assert answer.headers["Location"].endswith((await answer.json())["id"])


# -- errors and limits --------------------------------------------------------------------------------


REMOTE = [
    {"type": "text", "text": "a cat"},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/a.png"}},
]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "messages: must be a list"),
        ({"messages": "a cat"}, "messages: must be a list"),
        ({"messages": [1]}, "messages: must be a list"),
        ({"messages": []}, "no user message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no user message"),
        ({"messages": [{"role": "user", "content": ""}]}, "no text for a prompt"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]},
            "no text for a prompt",
        ),
        ({"messages": [{"role": "user", "content": [{"image": "AAAA"}]}]}, "no text for a prompt"),
        ({"messages": [{"role": "user"}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": [{"image_url": {}}]}]}, "content must be text"),
        ({"messages": [{"role": "user", "content": REMOTE}]}, "fetches no URLs"),
        ({"messages": ASKED, "extra_body": "{"}, "extra_body: must be a JSON object"),
        ({"messages": ASKED, "extra_body": {"num_inference_steps": 151}}, "151 steps are too many"),
        ({"messages": ASKED, "extra_body": {"size": "64x"}}, "size: must be"),
    ],
)
async def test_bad_requests(
    served: ServerProcess, session: aiohttp.ClientSession, body: dict[str, Any], words: str
) -> None:
    """A 400 whose `detail` is one sentence, as vLLM-Omni's clients print it."""
    async with session.post(served.url + CHAT, json=body) as answer:
        said = await answer.json()
        assert answer.status == 400, said
    assert words in said["detail"]
    assert said["error"]["type"] == "invalid_request_error"


async def test_steps_over_the_servers_maximum(served: ServerProcess, session: aiohttp.ClientSession) -> None:
    """The images API refuses them too, with the sentence in `detail`."""
    body = {**SMALL, "steps": None, "num_inference_steps": 151}
    async with session.post(served.url + GENERATIONS, json=body) as answer:
        assert answer.status == 400
        said = await answer.json()
    assert said["detail"] == "steps: 151 steps are too many; this server makes at most 150"


async def test_edits_take_their_size_from_the_picture(served: ServerProcess, folder: Path) -> None:
    """`size=auto`, and no size, follow the input; `jpg`, `mask_image` and `url` mean what they mean there."""
    (folder / "wide.png").write_bytes(png(noise(400, 200)))
    for size in ("-F size=auto", ""):
        out = await shell(
            f"curl -s {served.url}/v1/images/edits -F image=@wide.png -F prompt='a cat' {size}"
            " -F output_format=jpg -F true_cfg_scale=2 -F mask_image=@wide.png -F num_inference_steps=1",
            folder,
        )
        made = json.loads(out)
        width, height = map(int, made["size"].split("x"))
        assert width / height == pytest.approx(2, rel=0.1)
        assert made["output_format"] == "jpeg"
        assert made["data"][0]["cfg_scale"] == 2
        assert made["warnings"] == []


async def test_health(served: ServerProcess, session: aiohttp.ClientSession) -> None:
    """200 and a JSON object with a status, for checks that read either."""
    async with session.get(f"{served.url}/health") as answer:
        assert (answer.status, (await answer.json())["status"]) == (200, "ok")
