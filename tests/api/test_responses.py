"""POST /v1/responses with the image_generation tool, through the official client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from tests.api.client import data_url, noise, picture, png, read_block
from tests.conftest import App, RunningApp
from tests.fake_engines import CrashesAtStep, QuickEngine

TOOL: dict[str, Any] = {"type": "image_generation", "size": "64x64"}


@pytest_asyncio.fixture
async def app(running: RunningApp) -> AsyncIterator[App]:
    async with running(engine=QuickEngine) as app:
        yield app


@pytest_asyncio.fixture
async def client(app: App) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{app.url}/v1", api_key="none", max_retries=0) as client:
        yield client


async def test_the_guides_example(client: AsyncOpenAI) -> None:
    """As OpenAI's guide has it: the language model's name draws with the default model, and a warning."""
    response = await client.responses.create(
        model="gpt-5",
        input="a gray tabby cat hugging an otter",
        tools=[TOOL],  # type: ignore[list-item]
    )
    (call,) = [output for output in response.output if output.type == "image_generation_call"]
    assert picture(call.result).size == (64, 64)
    assert (response.status, response.model, call.status) == ("completed", "tiny-random", "completed")
    assert response.model_extra is not None
    assert response.model_extra["warnings"] == ["model: 'gpt-5' is not here; tiny-random drew"]


async def test_partial_images(client: AsyncOpenAI) -> None:
    """The stream's events in OpenAI's order, numbered, with partial images and the picture."""
    tool = {**TOOL, "partial_images": 2, "steps": 4, "seed": 5}
    stream: Any = await client.responses.create(
        model="tiny-random",
        input="a river of owl feathers",
        stream=True,
        tools=[tool],  # type: ignore[list-item]
    )
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    call = "image_generation_call."
    assert kinds == [
        "created", "in_progress", "output_item.added", f"{call}in_progress", f"{call}generating",
        f"{call}partial_image", f"{call}partial_image", f"{call}completed", "output_item.done", "completed",
    ]  # fmt: skip
    partials = [event for event in events if event.type.endswith("partial_image")]
    assert [event.partial_image_index for event in partials] == [0, 1]
    assert picture(partials[0].partial_image_b64).size == (64, 64)
    (item,) = events[-1].response.output
    assert picture(item.result).size == (64, 64)
    assert events[-2].item.id == item.id == partials[0].item_id


async def test_pictures_are_edited(client: AsyncOpenAI, app: App) -> None:
    """An `input_image`, or the pictures of the response before; a new one with `action: generate`."""
    content: Any = [
        {"type": "input_text", "text": "make it blue"},
        {"type": "input_image", "image_url": data_url(png(noise(64, 64)))},
    ]
    asked: Any = {"model": "tiny-random", "tools": [TOOL]}
    first = await client.responses.create(**asked, input=[{"role": "user", "content": content}])
    await client.responses.create(**asked, input="more blue", previous_response_id=first.id)
    asked["tools"] = [{**TOOL, "action": "generate"}]
    await client.responses.create(**asked, input="a cat", previous_response_id=first.id)
    _, jobs = await app.get("/v1/jobs")
    assert [job["operation"] for job in jobs["data"]] == ["generation", "edit", "edit"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input": "a cat"}, "writes no text"),
        ({"input": "a cat", "tools": [{"type": "web_search"}]}, "writes no text"),
        ({"input": [], "tools": [TOOL]}, "no user text"),
        ({"tools": [TOOL]}, "no user text"),
        ({"input": "a", "tools": [{**TOOL, "size": "9x"}]}, "size: must be"),
        ({"input": "a", "tools": [TOOL], "previous_response_id": "resp_0"}, "job"),
    ],
)
async def test_bad_requests(client: AsyncOpenAI, body: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.APIStatusError, match=words):
        await client.responses.create(model="tiny-random", **body)


async def test_a_failure_in_the_stream(running: RunningApp) -> None:
    """The last event is `response.failed`, with the reason."""
    async with running(engine=CrashesAtStep) as app, aiohttp.ClientSession() as session:
        body = {"input": "a cat", "tools": [{**TOOL, "steps": 3}], "stream": True}
        async with session.post(f"{app.url}/v1/responses", json=body) as answer:
            blocks = [read_block(part) for part in (await answer.text()).split("\n\n") if part]
    last: Any = blocks[-1]
    assert (last.event, last.data["response"]["status"]) == ("response.failed", "failed")
    assert "stopped unexpectedly" in last.data["response"]["error"]["message"]
