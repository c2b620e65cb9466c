"""/mcp as programs call it that speak the Model Context Protocol: the SDK's own client, of both eras."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from gguf_imagegen.api.dialects.mcp.showing import LARGEST, fitting
from tests.api.client import data_url, eventually, job_in_state, noise, picture, png
from tests.conftest import DEADLINE, App, RunningApp
from tests.fake_engines import NeverAnswers, NeverLoads, QuickEngine

ERAS = pytest.mark.parametrize("mode", ["auto", "legacy"])
CAT = {"prompt": "a cat", "size": "64x64", "steps": 3}
TOOLS = ["generate_image", "edit_image", "upscale_image", "list_models", "job_status", "cancel_job"]
ACCEPT = {"Accept": "application/json, text/event-stream"}


class StopsBeforeTheEnd(QuickEngine):
    """Makes all steps but the fourth."""

    async def at_step(self, step: int) -> None:
        if step == 4:
            await self.pause(None)


@asynccontextmanager
async def client(app: App, mode: str = "auto", key: str = "") -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http,
        Client(streamable_http_client(f"{app.url}/mcp", http_client=http), mode=mode) as made,
    ):
        yield made


def words(result: CallToolResult) -> str:
    last = result.content[-1]
    assert isinstance(last, TextContent)
    return last.text


def pictures(result: CallToolResult) -> list[Image.Image]:
    return [picture(each.data) for each in result.content if isinstance(each, ImageContent)]


@ERAS
async def test_the_tools(running: RunningApp, mode: str) -> None:
    """Each says what it is for, and which arguments it takes, none of them null."""
    async with running(engine=QuickEngine) as app, client(app, mode) as mcp:
        listed = (await mcp.list_tools()).tools
        models = await mcp.call_tool("list_models", {})
    assert [tool.name for tool in listed] == TOOLS
    assert all(tool.description and tool.input_schema["type"] == "object" for tool in listed)
    assert "null" not in json.dumps([tool.input_schema for tool in listed])
    assert list(listed[1].input_schema["properties"])[:2] == ["prompt", "image"]
    assert models.structured_content["models"][0]["id"] == "tiny-random"
    assert words(models).startswith("tiny-random (default): ")


@ERAS
async def test_a_picture_with_its_progress(running: RunningApp, mode: str) -> None:
    """Every step is told, rising; the picture is shown, and its address gives it whole."""
    told: list[tuple[float, str]] = []

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        assert total == 100
        told.append((progress, message or ""))

    async with running(engine=QuickEngine) as app, client(app, mode) as mcp:
        made = await mcp.call_tool("generate_image", {**CAT, "n": 2, "seed": 5}, progress_callback=tell)
        (first, second) = made.structured_content["images"]
        async with app.session.get(first["url"]) as answer:
            assert picture(await answer.read()).size == (64, 64)
    assert [each.size for each in pictures(made)] == [(64, 64)] * 2
    assert (first["seed"], second["seed"]) == (5, 6)
    assert first["url"] in words(made)
    job = made.structured_content["job_id"]
    numbers = [number for number, _ in told]
    assert numbers == sorted(set(numbers))
    steps = [message for _, message in told if "sampling" in message and "/3" in message]
    assert steps == [f"{job}: sampling {k}/3 of picture {i}/2" for i in (1, 2) for k in (1, 2, 3)]


async def test_what_takes_longer_is_picked_up(running: RunningApp) -> None:
    """A call answers with the job when its time is over; job_status has the newest preview, then the end."""
    async with running(engine=StopsBeforeTheEnd) as app, client(app) as mcp:
        begun = await mcp.call_tool("generate_image", {**CAT, "steps": 4, "wait_seconds": 0})
        job = begun.structured_content["job_id"]
        assert f"job_status with job_id={job}" in words(begun)

        async def preview() -> CallToolResult | None:
            looked = await mcp.call_tool("job_status", {"job_id": job})
            return looked if pictures(looked) else None

        shown = await eventually("a preview is there", preview)
        assert shown.structured_content["status"] == "running"
        latest = await mcp.call_tool("job_status", {})
        assert [each["job_id"] for each in latest.structured_content["jobs"]] == [job]
        stopped = await mcp.call_tool("cancel_job", {"job_id": job})
        assert stopped.structured_content == {"job_id": job, "status": "cancelled"}
        ended = await mcp.call_tool("job_status", {"job_id": job, "wait_seconds": 60})
        assert (ended.is_error, ended.structured_content["status"]) == (False, "cancelled")


async def test_waiting_for_a_job_gives_its_pictures(running: RunningApp) -> None:
    async with running(engine=QuickEngine) as app, client(app) as mcp:
        begun = await mcp.call_tool("generate_image", {**CAT, "wait_seconds": 0})
        job = begun.structured_content["job_id"]
        ended = await mcp.call_tool("job_status", {"job_id": job, "wait_seconds": 60})
    assert ended.structured_content["status"] == "succeeded"
    assert len(pictures(ended)) == 1


@ERAS
async def test_a_cancelled_call_cancels_its_job(running: RunningApp, mode: str) -> None:
    async with running(engine=NeverAnswers) as app, client(app, mode) as mcp:
        call = asyncio.create_task(mcp.call_tool("generate_image", CAT))
        await job_in_state(app, "running")
        call.cancel()
        job = await job_in_state(app, "cancelled")
    assert job["error"]["code"] == "cancelled"


async def test_a_line_that_is_cut_cancels_nothing(running: RunningApp) -> None:
    """In the older era a client says when it gives up; one that is cut off finds its job again."""
    async with running(engine=StopsBeforeTheEnd) as app:
        async with app.session.post(f"{app.url}/mcp", headers=ACCEPT, json=hello()) as answer:
            assert answer.status == 200
            session = {**ACCEPT, "Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
        call = {"name": "generate_image", "arguments": {**CAT, "steps": 4}}
        message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}
        async with app.session.post(f"{app.url}/mcp", headers=session, json=message) as answer:
            job = await job_in_state(app, "running")
            answer.close()
        async with client(app) as mcp:
            latest = await mcp.call_tool("job_status", {})
            assert latest.structured_content["jobs"][0] | {"progress": 0} == {
                "job_id": job["id"], "status": "running", "progress": 0
            }  # fmt: skip
            await mcp.call_tool("cancel_job", {"job_id": job["id"]})


def hello(version: str = "2025-06-18") -> dict[str, Any]:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    return {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}


async def test_silence_is_told_of(running: RunningApp) -> None:
    """Clients count the seconds since the last word; while nothing happens they hear that the job lives."""
    told: list[float] = []
    enough = asyncio.Event()

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)
        if len(told) == 6:
            enough.set()

    async with running(engine=NeverLoads, heartbeat=0.05) as app, client(app) as mcp:
        call = asyncio.create_task(mcp.call_tool("generate_image", CAT, progress_callback=tell))
        await asyncio.wait_for(enough.wait(), 60)
        call.cancel()
        await job_in_state(app, "cancelled")
    assert told == sorted(set(told))


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("generate_image", {}, "prompt: is required"),
        ("generate_image", {**CAT, "widht": 64}, "widht: unknown argument; known: "),
        ("generate_image", {**CAT, "steps": "many"}, "steps: "),
        ("generate_image", {**CAT, "steps": 100_000}, "steps"),
        ("generate_image", {**CAT, "size": "huge"}, "size: must be 'auto' or WIDTHxHEIGHT"),
        ("generate_image", {**CAT, "sampler": "eular"}, "did you mean 'euler'"),
        ("generate_image", {**CAT, "model": "nobody"}, "nobody"),
        ("edit_image", CAT, "image: is required"),
        ("edit_image", {**CAT, "image": "nobody.png"}, "there is no picture 'nobody.png'"),
        ("edit_image", {**CAT, "image": "http://127.0.0.1/a"}, "fetches no URLs"),
        ("edit_image", {**CAT, "image": "job_x"}, "there is no job 'job_x'"),
        ("upscale_image", {"image": data_url(png(noise(64, 64)))}, "--upscaler-dir"),
        ("job_status", {"job_id": "x"}, "there is no job 'x'"),
        ("cancel_job", {}, "job_id: is required"),
        ("paint", {}, "there is no tool 'paint'; known: generate_image, "),
    ],
)
async def test_wrong_arguments_are_told(
    running: RunningApp, tool: str, arguments: dict[str, Any], said: str
) -> None:
    """As results that are errors: the model reads them and tries again."""
    async with running(engine=QuickEngine) as app, client(app) as mcp:
        result = await mcp.call_tool(tool, arguments)
    assert result.is_error
    assert said in words(result)


async def test_pictures_that_edits_begin_with(running: RunningApp) -> None:
    """A job's, an address, a file's name, and a data URL."""
    async with running(engine=QuickEngine) as app, client(app) as mcp:
        made = (await mcp.call_tool("generate_image", CAT)).structured_content
        url = made["images"][0]["url"]
        given = [made["job_id"], url, url.rsplit("/", 1)[1], data_url(png(noise(64, 64)))]
        for image in given:
            edited = await mcp.call_tool("edit_image", {**CAT, "image": image, "strength": 0.5})
            assert not edited.is_error, words(edited)
        assert len(app.scheduler.jobs) == 1 + len(given)


async def test_rights_are_those_of_the_caller(running: RunningApp, tmp_path: Path) -> None:
    """No key, no tools; each caller sees its own jobs, and has no use for another's session."""
    people = tmp_path / "callers.yaml"
    people.write_text(
        json.dumps(
            [{"name": name, "key": f"key-{name}", "admin": name == "root"} for name in ("root", "ann", "bob")]
        )
    )
    people.chmod(0o600)
    async with running(engine=QuickEngine, callers=people) as app:
        async with app.session.post(f"{app.url}/mcp", headers=ACCEPT, json=hello()) as answer:
            assert answer.status == 401
        async with client(app, key="key-ann") as ann, client(app, key="key-bob") as bob:
            job = (await ann.call_tool("generate_image", CAT)).structured_content["job_id"]
            refused = await bob.call_tool("job_status", {"job_id": job})
            none = await bob.call_tool("job_status", {})
        assert "there is no job" in words(refused)
        assert none.structured_content == {"jobs": []}
        anns, bobs = ({**ACCEPT, "Authorization": f"Bearer key-{name}"} for name in ("ann", "bob"))
        async with app.session.post(f"{app.url}/mcp", headers=anns, json=hello()) as answer:
            session = {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
        for headers, status in ((bobs, 404), (anns, 200)):
            async with app.session.delete(f"{app.url}/mcp", headers={**headers, **session}) as answer:
                assert answer.status == status


@pytest.mark.parametrize(
    ("sent", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 415),
        (b'{"jsonrpc": "2.0"}', {}, 400),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', {}, 413),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}', {"Mcp-Session-Id": "x"}, 404),
    ],
    ids=["no JSON", "a batch", "no message", "too large", "unknown session"],
)
async def test_what_is_refused_before_any_tool(
    running: RunningApp, sent: bytes, headers: dict[str, str], status: int
) -> None:
    """In JSON-RPC's words, whoever refuses."""
    async with (
        running(engine=QuickEngine, max_body_mb=1) as app,
        app.session.post(f"{app.url}/mcp", headers={**ACCEPT, **headers}, data=io.BytesIO(sent)) as answer,
    ):
        body = await answer.json()
    assert (answer.status, body["jsonrpc"]) == (status, "2.0")
    assert body["error"]["message"]


async def test_another_origin_is_refused(running: RunningApp) -> None:
    """A page on the web that calls the server of whoever looks at it."""
    async with running(engine=QuickEngine) as app:
        headers = {**ACCEPT, "Origin": "https://elsewhere.example"}
        async with app.session.post(f"{app.url}/mcp", headers=headers, json=hello()) as answer:
            assert answer.status == 403


async def test_without_the_extra(running: RunningApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """501, with the line that installs it."""
    monkeypatch.setitem(sys.modules, "mcp", None)  # as Python says that there is no such module
    async with (
        running(engine=QuickEngine) as app,
        app.session.post(f"{app.url}/mcp", headers=ACCEPT, json=hello()) as answer,
    ):
        body = await answer.json()
    assert answer.status == 501
    assert "pip install 'gguf-imagegen[mcp]'" in body["error"]["message"]


async def test_open_streams_do_not_hold_the_server_up(running: RunningApp) -> None:
    """Older clients keep one open for as long as they run; it ends with the server."""
    async with aiohttp.ClientSession() as outside:
        async with running(engine=QuickEngine) as app:
            async with outside.post(f"{app.url}/mcp", headers=ACCEPT, json=hello()) as answer:
                session = {"Accept": "text/event-stream", "Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
            stream = await outside.get(f"{app.url}/mcp", headers=session)
            assert stream.status == 200
        assert await asyncio.wait_for(stream.read(), DEADLINE) == b""


def test_large_pictures_are_shown_smaller() -> None:
    """Chat programs refuse answers over a mebibyte; the address has the whole picture."""
    large, small = png(noise(1500, 1400)), png(noise(64, 64))
    file, kind = fitting(large, LARGEST)
    assert len(file) <= LARGEST < len(large)
    assert (kind, Image.open(io.BytesIO(file)).format) == ("image/jpeg", "JPEG")
    assert fitting(small, LARGEST) == (small, "image/png")
    assert base64.b64encode(file)
