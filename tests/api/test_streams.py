"""Event streams byte by byte, in every dialect, as curl and strict clients read them."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI

from gguf_imagegen.vocabulary.engine import Engine
from tests.api.client import (
    DONE,
    EDITS,
    GENERATIONS,
    SMALL,
    Stream,
    eventually,
    get_stream,
    job_in_state,
    noise,
    picture,
    png,
    post_stream,
    read_stream,
    start_job,
)
from tests.conftest import DEADLINE, RunningApp, ServerProcess
from tests.fake_engines import (
    CannotLoad,
    CrashesAtLoad,
    CrashesAtStep,
    FailsGeneration,
    NeverAnswers,
    QuickEngine,
    SlowEngine,
)

OPENAI_KEYS = {"type", "b64_json", "created_at", "size", "quality", "background", "output_format"}


def dialect_of(stream: Stream) -> str:
    """Which dialect a stream is written in, seen from its frames alone."""
    frames = [event for event in stream.events if event.data != DONE]
    has_list, has_name = all_agree("data" in f.data for f in frames), all_agree(bool(f.event) for f in frames)
    return {(True, False): "llama-box", (False, True): "openai", (True, True): "both"}[has_list, has_name]


def all_agree(values: Iterable[bool]) -> bool:
    (value,) = set(values)
    return value


def remove_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


# -- bytes and headers --------------------------------------------------------------------------------


def test_curl_sees_steps_and_done(server: ServerProcess, tmp_path: Path) -> None:
    """`curl -N -d` without a content type gets the headers of an unbuffered stream and a frame a step."""
    head = tmp_path / "head"
    ran = subprocess.run(
        ["curl", "-sN", "--compressed", "-D", head, "-d", json.dumps({**SMALL, "stream": True}),
         server.url + GENERATIONS],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    headers = dict(line.lower().split(": ", 1) for line in head.read_text().splitlines()[1:] if line)
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-cache, no-store, no-transform"
    assert headers["x-accel-buffering"] == "no"
    assert headers["x-job-id"].startswith("job_")
    assert "content-encoding" not in headers
    assert ran.stdout.endswith("\n\ndata: [DONE]\n\n")
    stream = read_stream(ran.stdout)
    assert [event.data for event in stream.events].count(DONE) == 1
    assert picture(stream.items[-1]["b64_json"]).size == (64, 64)


async def test_frames_come_while_the_work_goes_on(running: RunningApp) -> None:
    """Frames are not held back: the first is read while the engine is still busy with its first step."""
    async with running(engine=NeverAnswers) as app:
        body = {**SMALL, "stream": True}
        async with app.session.post(app.url + GENERATIONS, json=body) as answer:
            while b'"phase":"sampling"' not in (line := await answer.content.readline()):
                assert line
            _, job = await app.get(f"/v1/jobs/{answer.headers['X-Job-Id']}")
            assert job["status"] == "running"


@pytest.mark.parametrize("dialect", ["llama-box", "openai", "both"])
async def test_image_routes_send_only_plain_frames(running: RunningApp, dialect: str) -> None:
    """On image routes no frame has an id or a retry line, and each is one line of JSON with its data."""
    async with running(engine=QuickEngine) as app:
        options = {"dialect": dialect, "preview": True}
        stream = await post_stream(app.session, app.url + GENERATIONS, stream_options=options)
    assert len(stream.events) >= 2
    assert all(event.id is None and event.data for event in stream.events)  # the rest is in read_block
    assert stream.events[-1].data == DONE


# -- llama-box ----------------------------------------------------------------------------------------


async def test_llama_box_progress(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """There is one frame a step, `progress` never falls and its last value is exactly 100."""
    stream = await post_stream(session, server.url + GENERATIONS, steps=5, seed=43)
    items = stream.items
    assert [i["progressed_steps"] for i in items if i["phase"] == "sampling" and i["progress"]] == [
        1,
        2,
        3,
        4,
        5,
    ]
    progress = [item["progress"] for item in items]
    assert progress == sorted(progress)
    assert progress[-1] == 100
    assert progress.count(100) == 1
    assert [item["finish_reason"] for item in items] == [None] * (len(items) - 1) + ["stop"]
    assert all("b64_json" not in item for item in items[:-1])
    assert items[-1].keys() == {
        "index", "object", "progressed_steps", "progress_steps", "progress", "phase", "finish_reason",
        "seed", "b64_json",
    }  # fmt: skip
    assert (items[-1]["seed"], items[-1]["phase"], items[-1]["progressed_steps"]) == (43, "done", 5)
    assert all(before != after for before, after in pairwise(items))
    for event in stream.events[:-1]:
        ends = event.item["finish_reason"] == "stop"
        assert event.data.keys() == {"created", "model", "object", "type", "usage", "data"} | (
            {"warnings"} if ends else set()
        )
        assert (event.data["object"], event.data["type"]) == ("list", "image.chunk")
        assert event.data["model"] == "tiny-random"


@pytest.mark.parametrize(
    ("options", "expected"), [({}, [True, True]), ({"include_usage": True}, [False, True])]
)
async def test_llama_box_usage(
    server: ServerProcess,
    session: aiohttp.ClientSession,
    options: dict[str, object],
    expected: list[bool],
) -> None:
    """Usage is on the final frames; with include_usage on the very last one only; else it is null."""
    stream = await post_stream(session, server.url + GENERATIONS, n=2, stream_options=options)
    frames = [event.data for event in stream.events[:-1]]
    assert [bool(f["usage"]) for f in frames if f["data"][0]["finish_reason"]] == expected
    assert all(f["usage"] is None for f in frames if not f["data"][0]["finish_reason"])
    last = frames[-1]["usage"]
    assert last.keys() == {"time_to_process_ms", "time_per_generation_ms", "generation_per_second"}
    assert all(value > 0 for value in last.values())


@pytest.mark.parametrize("mode", [True, "proj", "tae", "vae"])
async def test_llama_box_previews(
    server: ServerProcess, session: aiohttp.ClientSession, mode: bool | str
) -> None:
    """Every preview mode puts pictures of the asked format into frames before the last."""
    stream = await post_stream(
        session,
        server.url + GENERATIONS,
        steps=4,
        size="128x128",
        output_format="webp",
        stream_options={"preview": mode},
    )
    previews = [item for item in stream.items[:-1] if "b64_json" in item]
    assert previews
    for item in previews:
        preview = picture(item["b64_json"])
        assert preview.format == "WEBP"
        assert preview.width == preview.height
        assert item["finish_reason"] is None
    progress = [item["progress"] for item in stream.items]
    assert progress == sorted(progress)


async def test_llama_box_chunks(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """chunk_results cuts the image into pieces that join to the very file; only the last one finishes."""
    whole = (await post_stream(session, server.url + GENERATIONS, seed=4)).items[-1]["b64_json"]
    for name in ("chunk_results", "chunk_result", "chunk"):
        options = {name: True, "chunk_size": 300, "preview": True}
        stream = await post_stream(session, server.url + GENERATIONS, seed=4, stream_options=options)
        pieces = [item for item in stream.items if "b64_json" in item]
        assert len(pieces) == -(-len(whole) // 300) > 2
        assert "".join(item["b64_json"] for item in pieces) == whole
        assert {item["progressed_steps"] for item in pieces} == {2}
        assert [item["finish_reason"] for item in pieces] == [None] * (len(pieces) - 1) + ["stop"]
        assert [item["progress"] == 100 for item in pieces] == [False] * (len(pieces) - 1) + [True]


async def test_llama_box_images_one_after_the_other(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """With n=2 each frame has one item with its index, and image 0 is complete before 1 begins."""
    items = (await post_stream(session, server.url + GENERATIONS, n=2, seed=5)).items
    first = [item["index"] for item in items].index(1)
    assert {item["index"] for item in items[:first]} == {0}
    assert {item["index"] for item in items[first:]} == {1}
    for index, part in enumerate((items[:first], items[first:])):
        assert (part[-1]["progress"], part[-1]["finish_reason"], part[-1]["seed"]) == (100, "stop", 5 + index)
        assert picture(part[-1]["b64_json"]).size == (64, 64)
        assert part[0]["progress"] == 0


async def test_llama_box_second_pass_goes_on_where_the_first_ended(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """With a hires pass progress still never falls, and the image has the larger size."""
    hires = {"scale": 2, "steps": 2, "denoising_strength": 0.5}
    items = (await post_stream(session, server.url + GENERATIONS, hires=hires)).items
    progress = [item["progress"] for item in items]
    assert progress == sorted(progress)
    assert {"sampling", "hires"} <= {item["phase"] for item in items}
    assert picture(items[-1]["b64_json"]).size == (128, 128)


# -- OpenAI and both ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 3])
async def test_openai_frames(server: ServerProcess, session: aiohttp.ClientSession, count: int) -> None:
    """Exactly the asked partial images and one completed event; progress and queue are comments."""
    stream = await post_stream(session, server.url + GENERATIONS, partial_images=count, steps=4, seed=7)
    *partials, completed, done = stream.events
    assert done.data == DONE
    assert [event.data["partial_image_index"] for event in partials] == list(range(count))
    for event in partials:
        assert event.data.keys() == OPENAI_KEYS | {"partial_image_index"}
        assert event.event == event.data["type"] == "image_generation.partial_image"
        assert picture(event.data["b64_json"]).format == "PNG"
    assert completed.event == completed.data["type"] == "image_generation.completed"
    assert completed.data.keys() == OPENAI_KEYS | {"usage", "index", "seed", "warnings"}
    assert completed.data["seed"] == 7
    steps = [comment.split()[1] for comment in stream.comments if comment.startswith("progress ")]
    assert [step for step in steps if step != "0/4"] == ["1/4", "2/4", "3/4", "4/4"]
    assert any(comment.startswith("queued position=1") for comment in stream.comments)


@pytest.mark.parametrize("dialect", ["llama-box", "openai", "both"])
async def test_warnings_reach_streams(running: RunningApp, dialect: str) -> None:
    """What a waiting client would read in the answer comes with each finished image."""
    options = {"dialect": dialect}
    async with running(engine=QuickEngine) as app:
        stream = await post_stream(app.session, app.url + GENERATIONS, n=2, foo=1, stream_options=options)
    told = [event.data["warnings"] for event in stream.events[:-1] if "warnings" in event.data]
    assert told == [["unknown field 'foo' was ignored"]] * 2


async def test_both_dialects_in_one_frame(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """Every frame of `both` has OpenAI's type and keys and llama-box's data list."""
    options = {"dialect": "both", "preview": True}
    stream = await post_stream(session, server.url + GENERATIONS, steps=3, stream_options=options)
    for event in stream.events[:-1]:
        assert event.event == event.data["type"]
        assert event.item.keys() >= {"index", "progress", "progressed_steps", "phase"}
        if "b64_json" in event.item:
            assert event.data["b64_json"] == event.item["b64_json"]
            assert event.data.keys() >= OPENAI_KEYS
    kinds = [event.event for event in stream.events[:-1]]
    assert set(kinds) == {f"image_generation.{kind}" for kind in ("progress", "partial_image", "completed")}
    assert kinds[-1] == "image_generation.completed"
    progress = [item["progress"] for item in stream.items]
    assert progress == sorted(progress)
    assert progress[-1] == 100


SDK = {"x-stainless-lang": "python", "Accept": "application/json"}


@pytest.mark.parametrize(
    ("fields", "headers", "dialect"),
    [
        ({}, {}, "llama-box"),
        ({}, {"Accept": "text/event-stream"}, "llama-box"),
        ({"stream_options": {"include_usage": True}}, {}, "llama-box"),
        ({}, SDK, "openai"),
        ({"stream_options": {"include_usage": True}}, SDK, "llama-box"),
        ({"partial_images": 0}, {}, "openai"),
        ({"partial_images": 2}, {}, "openai"),
        ({"partial_images": 2, "stream_options": {"preview": True}}, SDK, "openai"),
        ({"partial_images": 2, "stream_options": {"dialect": "llama-box"}}, SDK, "llama-box"),
        ({"stream_options": {"dialect": "llama-box"}}, SDK, "llama-box"),
        ({"stream_options": {"dialect": "openai"}}, {}, "openai"),
        ({"stream_options": {"dialect": "both"}}, {}, "both"),
        ({"stream_options": {"dialect": "both"}, "partial_images": 1}, SDK, "both"),
    ],
)
async def test_dialect_is_decided_by_the_body_and_the_sdk_header(
    running: RunningApp, fields: dict[str, Any], headers: dict[str, str], dialect: str
) -> None:
    """The decision table of the contract; `Accept` decides nothing."""
    async with running(engine=QuickEngine) as app:
        stream = await post_stream(app.session, app.url + GENERATIONS, headers=headers, **fields)
    assert dialect_of(stream) == dialect


@pytest.mark.parametrize(
    "options",
    [
        {"stream_options": '{"chunk_results": true, "chunk_size": 100}'},
        {"stream_options_chunk_results": "true", "stream_options_chunk_size": "100"},
        {"stream_options[chunk_results]": "1", "stream_options[chunk_size]": "100"},
    ],
)
async def test_forms_carry_stream_options(running: RunningApp, options: dict[str, str]) -> None:
    """A form gives stream options as JSON, with an underscore, or with brackets."""
    form = aiohttp.FormData()
    form.add_field("image[]", png(noise()), filename="a.png", content_type="image/png")
    for name, value in {"prompt": "a cat", "steps": "2", "stream": "true", **options}.items():
        form.add_field(name, value)
    async with running(engine=QuickEngine) as app:
        stream = await post_stream(app.session, app.url + EDITS, data=form)
    pieces = [item["b64_json"] for item in stream.items if "b64_json" in item]
    assert [len(piece) for piece in pieces[:-1]] == [100] * (len(pieces) - 1)
    assert picture("".join(pieces)).size == (128, 128)


# -- waiting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["llama-box", "openai", "both"])
async def test_heartbeat_while_the_engine_is_silent(running: RunningApp, dialect: str) -> None:
    """During a slow load and slow steps a comment shows that the server lives."""
    async with running(engine=SlowEngine, heartbeat=0.1) as app:
        stream = await post_stream(app.session, app.url + GENERATIONS, stream_options={"dialect": dialect})
    assert stream.comments.count("hb") >= 3
    assert stream.events[-1].data == DONE


async def test_heartbeat_while_queued(running: RunningApp) -> None:
    """A waiting stream says its place at once, and heartbeats follow."""
    async with running(engine=NeverAnswers, heartbeat=0.1) as app:
        task, first = await start_job(app)
        async with app.session.post(app.url + GENERATIONS, json={**SMALL, "stream": True}) as answer:
            lines = [line async for line in _comments(answer, 3)]
            assert lines == ["queued position=1", "hb", "hb"]
            await app.session.delete(f"{app.url}/v1/jobs/{answer.headers['X-Job-Id']}")
        await app.session.delete(f"{app.url}/v1/jobs/{first['id']}")
        assert (await task)[0] == 499


async def test_a_place_that_has_changed_is_told(running: RunningApp) -> None:
    """A waiting stream hears as a comment that it moved up, between its heartbeats."""
    async with running(engine=NeverAnswers, heartbeat=0.1) as app:
        first, job = await start_job(app)
        second, ahead = await start_job(app, "queued")
        async with app.session.post(app.url + GENERATIONS, json={**SMALL, "stream": True}) as answer:
            assert await answer.content.readuntil(b"\n\n") == b": queued position=2\n\n"
            await app.session.delete(f"{app.url}/v1/jobs/{ahead['id']}")
            told = await asyncio.wait_for(answer.content.readuntil(b": queued position=1\n\n"), DEADLINE)
            assert told.replace(b": hb\n\n", b"") == b": queued position=1\n\n"
            await app.session.delete(f"{app.url}/v1/jobs/{answer.headers['X-Job-Id']}")
        await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")
        await asyncio.gather(first, second)


async def _comments(answer: aiohttp.ClientResponse, count: int) -> AsyncIterator[str]:
    while count:
        line = (await answer.content.readline()).decode()
        assert line
        if line.startswith(": "):
            count -= 1
            yield line[2:].strip()


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["llama-box", "openai", "both"])
@pytest.mark.parametrize(
    ("engine", "code"),
    [
        (FailsGeneration, "generation_failed"),
        (CrashesAtStep, "worker_crashed"),
        (CrashesAtLoad, "worker_crashed"),
        (CannotLoad, "model_load_failed"),
    ],
)
async def test_errors_end_a_stream(
    running: RunningApp, engine: Callable[[], Engine], code: str, dialect: str
) -> None:
    """An error after the 200 is one `error` event with the usual body, and the last thing sent."""
    async with running(engine=engine) as app:
        stream = await post_stream(app.session, app.url + GENERATIONS, stream_options={"dialect": dialect})
    last = stream.events[-1]
    assert last.event == "error"
    assert last.data.keys() == {"error", "detail"}
    assert last.data["error"].keys() == {"message", "type", "param", "code"}
    assert last.data["error"]["code"] == code
    assert DONE not in [event.data for event in stream.events]


async def test_official_client_raises_what_a_stream_tells(running: RunningApp) -> None:
    """The SDK turns the error event into an APIError with the message."""
    async with (
        running(engine=FailsGeneration) as app,
        AsyncOpenAI(base_url=f"{app.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = await client.images.generate(prompt="a cat", stream=True, extra_body={"steps": 3})
        with pytest.raises(openai.APIError, match="out of paint"):
            async for _ in stream:
                pass


async def test_cancelled_job_ends_its_stream_with_an_error(running: RunningApp) -> None:
    """Who watches a job that somebody else cancels is told so."""
    async with running(engine=NeverAnswers) as app:
        async with app.session.post(app.url + GENERATIONS, json={**SMALL, "stream": True}) as answer:
            job_id = answer.headers["X-Job-Id"]
            await job_in_state(app, "running", job_id)
            await app.session.delete(f"{app.url}/v1/jobs/{job_id}")
            stream = read_stream(await answer.text())
        assert stream.events[-1].event == "error"
        assert stream.events[-1].data["error"]["code"] == "cancelled"


async def test_image_that_is_gone_is_an_error_event(running: RunningApp, tmp_path: Path) -> None:
    """If the file has vanished when it is to be sent, the stream says so and does not just break off."""
    async with running(engine=QuickEngine, output_dir=tmp_path) as app:
        _, body = await app.post(GENERATIONS, **SMALL)
        remove_files(tmp_path)
        stream = await get_stream(app.session, f"{app.url}/v1/jobs/{body['id']}/events")
    assert stream.events[-1].event == "error"
    assert stream.events[-1].data["error"]["code"] == "not_found"


async def test_a_slow_stream_is_complete(running: RunningApp) -> None:
    """A client that attaches to the job's own stream late gets the same final image."""
    async with running(engine=SlowEngine) as app:
        task, job = await start_job(app, steps=1)
        stream = await get_stream(app.session, f"{app.url}/v1/jobs/{job['id']}/events")
        _, body = await task

        async def finished() -> bool:
            return not app.scheduler.running

        await eventually("the job has ended", finished)
    images = [event for event in stream.events if event.event == "image_generation.completed"]
    assert [event.data["b64_json"] for event in images] == [body["data"][0]["b64_json"]]
