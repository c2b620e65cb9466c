"""Prompts that a language model writes anew: a small real server plays it, well or badly."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from aiohttp import web

from gguf_imagegen.planning.enhancer import Enhancer
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest
from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, noise, png
from tests.api.test_restart import LASTING, Kept, begin, gone, kept
from tests.conftest import RunningApp
from tests.endpoints import Answer, Call, Endpoint, endpoint, never
from tests.fake_engines import NeverAnswers, QuickEngine, SeeingEngine

__all__ = ["kept"]
BETTER = "A ginger cat on a red sofa, soft evening light"


def says(text: str | None, status: int = 200) -> Answer:
    async def answer(call: Call) -> web.StreamResponse:
        message = {"role": "assistant", "content": text}
        return web.json_response(
            {"object": "chat.completion", "choices": [{"message": message}]}, status=status
        )

    return answer


def sends(body: bytes) -> Answer:
    async def answer(call: Call) -> web.StreamResponse:
        return web.Response(body=body)

    return answer


def enhanced(there: Endpoint, **fields: Any) -> dict[str, Any]:
    return {"engine": QuickEngine, "enhance_url": f"{there.url}/v1", "enhance_model": "qwen3", **fields}


async def test_the_prompt_is_written_anew(running: RunningApp) -> None:
    """It is what the engine draws, the answer tells, and the picture says; the seed stays the client's."""
    seen: list[Any] = []
    thoughts = f'<think>a cat,\nhm</think>\n\n"{BETTER}"\n'
    async with (
        endpoint(says(thoughts)) as there,
        running(**enhanced(there, engine=lambda: SeeingEngine(seen), enhance_key="sesame")) as app,
    ):
        status, body = await app.post(GENERATIONS, **SMALL, seed=7, enhance=True)
        assert (status, body["warnings"]) == (200, [])
        (item,) = body["data"]
        assert (item["revised_prompt"], item["seed"]) == (BETTER, 7)
        assert (seen[-1].prompt, seen[-1].seed) == (BETTER, 7)
        _, told = await app.post("/v1/images/info", image=item["b64_json"])
        assert told["parameters"]["Prompt"] == BETTER
        _, job = await app.get(f"/v1/jobs/{body['id']}")
        assert (job["parameters"]["prompt"], job["data"][0]["revised_prompt"]) == (BETTER, BETTER)
    (call,) = there.calls
    asked = json.loads(call.body)
    assert (call.path, call.headers["Authorization"]) == ("/v1/chat/completions", "Bearer sesame")
    assert (asked["model"], asked["messages"][-1]["content"]) == ("qwen3", SMALL["prompt"])
    assert "image generator" in asked["messages"][0]["content"]


async def test_nobody_is_asked_unless_the_request_wants_it(running: RunningApp) -> None:
    """The default is off; an edit has instructions of its own."""
    async with endpoint(says(BETTER)) as there, running(**enhanced(there)) as app:
        _, body = await app.post(GENERATIONS, **SMALL)
        assert (body["data"][0]["revised_prompt"], there.calls) == (None, [])
        image = data_url(png(noise(64, 64)))
        _, body = await app.post(EDITS, **SMALL, image=image, enhance=True)
        assert body["data"][0]["revised_prompt"] == BETTER
        assert "image editor" in json.loads(there.calls[0].body)["messages"][0]["content"]


async def test_the_responses_api_tells_it(running: RunningApp) -> None:
    """In the item of the call, where OpenAI has it."""
    async with endpoint(says(BETTER)) as there, running(**enhanced(there)) as app:
        tool = {"type": "image_generation", "size": "64x64", "enhance": True}
        status, body = await app.post("/v1/responses", input="a cat", tools=[tool])
        assert (status, body["output"][0]["revised_prompt"]) == (200, BETTER)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (says(BETTER, 500), "the answer was 500"),
        (says(BETTER, 302), "the answer was 302"),
        (says(None), "it said nothing"),
        (says("<think>hm</think>  "), "it said nothing"),
        (says("cat " * 3000), "its prompt: "),
        (says("(" * 20), "its prompt: brackets nest"),
        (sends(b"{}"), "no chat completion"),
        (sends(b'{"choices": []}'), "it said nothing"),
        (sends(b"<html>"), "no chat completion"),
        (sends(b" " * (2 << 20)), "the answer has more than"),
    ],
)
async def test_without_help_the_prompt_is_as_given(
    running: RunningApp, caplog: pytest.LogCaptureFixture, answer: Answer, why: str
) -> None:
    """With a warning that says why; neither it nor the log has the key."""
    caplog.set_level(logging.INFO)
    async with endpoint(answer) as there, running(**enhanced(there, enhance_key="sesame")) as app:
        status, body = await app.post(GENERATIONS, **SMALL, enhance=True)
        assert (status, body["data"][0]["revised_prompt"]) == (200, None)
        (warning,) = body["warnings"]
        assert warning.startswith("enhance: the language model did not help (")
        assert why in warning
        _, job = await app.get(f"/v1/jobs/{body['id']}")
        assert job["parameters"]["prompt"] == SMALL["prompt"]
    assert "sesame" not in caplog.text + str(body)


async def test_a_server_without_a_language_model_says_so(running: RunningApp) -> None:
    """So that nobody wonders."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.post(GENERATIONS, **SMALL, enhance=True)
    assert (status, body["data"][0]["revised_prompt"]) == (200, None)
    assert body["warnings"] == ["enhance: has no effect, as the server was started without --enhance-url"]


async def test_it_is_not_waited_for_for_ever() -> None:
    """Of many at once each waits as long at most."""
    async with endpoint(never) as there:
        settings = Settings(enhance_url=there.url, enhance_model="m")
        warnings: list[str] = []
        assert await Enhancer(settings, patience=0.2).better("a cat", "generation", warnings) is None
    assert "no answer within 0.2 s" in warnings[0]


async def test_what_was_written_survives_a_restart(running: RunningApp, kept: Kept) -> None:
    """The ticket has the prompt: the language model is asked once, and the picture is the same."""
    seen: list[Any] = []
    async with endpoint(says(BETTER)) as there:
        async with running(**enhanced(there, engine=NeverAnswers, state_dir=kept.folder)) as app:
            client, job_id = await begin(app, seed=7, enhance=True, **LASTING)
        await gone(client)
        again = enhanced(there, engine=lambda: SeeingEngine(seen), state_dir=kept.folder)
        async with running(**again) as app:
            await app.service.knows_the_past.wait()
            await app.scheduler.jobs[job_id].wait()
            _, job = await app.get(f"/v1/jobs/{job_id}")
        assert len(there.calls) == 1
    assert (seen[-1].prompt, seen[-1].seed) == (BETTER, 7)
    assert job["data"][0]["revised_prompt"] == BETTER


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"enhance_url": "localhost:8080", "enhance_model": "m"}, "enhance_url"),
        ({"enhance_url": "http://localhost:8080/v1"}, "enhance_model"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], param: str) -> None:
    """At the start."""
    with pytest.raises(InvalidRequest) as refused:
        Enhancer(Settings(**fields))
    assert refused.value.param == param
