"""Pulling and removing models over HTTP: frames, followers that come and go, cancel, and refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from gguf_imagegen.api.errands import Running
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.pull import publish
from gguf_imagegen.catalog import quants
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.download.progress import Verifying
from gguf_imagegen.machine.memory import Available
from tests.api.client import Stream, eventually, read_stream
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine
from tests.hub import HubServer, Repo, write_catalog
from tests.weights import split_gguf

MB = 1_000_000
DATA = np.random.default_rng(2).bytes(2 * MB)
PULL = "/v1/models/pull"


class Place:
    """A models folder with the tiny model in it, and a catalog with two more in the hub."""

    def __init__(self, folder: Path, hub: HubServer, running: RunningApp) -> None:
        self.folder = folder / "models"
        self.folder.mkdir()
        self._tiny = write_test_model(self.folder)
        self._running = running
        vae = hub.add("org/shared", "vae.safetensors", DATA[:MB])
        self._catalog = write_catalog(
            folder / "hub.yaml",
            one={"model": hub.add("org/one", "one.gguf", DATA), "vae": vae},
            two={"model": hub.add("org/two", "two.gguf", DATA[::-1])},
            bare={"model": "bare.gguf"},
            huge={"quants": {"Q8_0": {"repo": "org/huge", "file": "huge.gguf", "bytes": 10**6}}},
            secret={"model": {**hub.add("org/secret", "s.gguf", DATA[1:]), "sha256": None}},
            runs={
                "model": hub.add("org/tiny", "tiny.gguf", self._tiny["model"].read_bytes()),
                "taesd": hub.add("org/tiny", "tae.gguf", self._tiny["taesd"].read_bytes()),
            },
        )
        hub.repos["org/secret"].gated = True

    def serve(self, **settings: Any) -> AbstractAsyncContextManager[App]:
        return self._running(models_dir=self.folder, catalog=self._catalog, engine=QuickEngine, **settings)

    def file(self, name: str) -> Path:
        return self.folder / "org" / name


@pytest.fixture
def place(tmp_path: Path, hub: HubServer, running: RunningApp) -> Place:
    return Place(tmp_path, hub, running)


async def pull(app: App, model: str) -> Stream:
    """Follow a pull to its end."""
    async with app.session.post(app.url + PULL, json={"model": model}) as answer:
        assert answer.status == 200, await answer.text()
        assert answer.headers["Content-Type"] == "text/event-stream"
        return read_stream(await answer.text(), dict(answer.headers))


@asynccontextmanager
async def following(app: App, model: str, hub: HubServer, sent: int) -> AsyncIterator[aiohttp.ClientResponse]:
    """A pull that is followed, has begun to arrive, and is held by the hub after so many bytes."""
    hub.faults.hold_after = sent
    async with app.session.post(app.url + PULL, json={"model": model}) as answer:
        await arrived(app)
        yield answer


async def arrived(app: App) -> None:
    """Wait until some of a file is on disk."""

    async def look() -> bool:
        return any(path.stat().st_size for path in app.app[SERVICE].settings.models_dir.rglob("*.partial"))

    await eventually("something has arrived", look)


async def delete(app: App, path: str) -> tuple[int, Any]:
    async with app.session.delete(app.url + path) as answer:
        return answer.status, await answer.json()


async def ended(app: App, model: str) -> Any:
    """The pull's last state."""

    async def look() -> Any:
        _, body = await app.get(f"{PULL}/{model}")
        return body if body["status"] not in ("waiting", "running") else None

    return await eventually("the pull ends", look)


async def test_what_does_not_fit_is_refused(
    place: Place, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named or not, before anything is fetched, with the flag that turns this off."""
    monkeypatch.setattr(quants, "available", lambda: Available(1000))
    async with place.serve() as app:
        for name in ("huge", "huge:Q8_0"):
            async with app.session.post(app.url + PULL, json={"model": name}) as answer:
                error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (507, "insufficient_memory")
            assert "--no-memory-check" in error["message"]
    assert hub.contents == []


def test_hashes_have_frames_of_their_own() -> None:
    """Which those see who are quick enough; in a stream the next word of the file may come before."""
    running = Running("model.pull", "one")
    publish(running, Verifying("one.gguf", 1, 3))
    (news,) = running.since(0)
    assert news.name == "verifying"
    assert news.view == {"status": "verifying", "file": "one.gguf", "done": 1, "total": 3}


async def test_frames(place: Place) -> None:
    """A plan, growing bytes of each file with speed, hashes, and `done` with all files at the end."""
    async with place.serve() as app:
        stream = await pull(app, "one")
        names = [event.event for event in stream.events]
        assert names[0] == "progress"
        assert names[-1] == "done"
        assert set(names) <= {"progress", "verifying", "done"}  # who is slow is told the latest alone
        assert stream.events[0].data == {
            "model": "one", "status": "planned", "overall": {"done": 0, "total": 3 * MB},
            "files": [
                {"file": "org/one/one.gguf", "total": 2 * MB},
                {"file": "org/shared/vae.safetensors", "total": MB},
            ],
        }  # fmt: skip
        steps = [event.data for event in stream.events if event.data.get("status") == "downloading"]
        assert {"file", "done", "total", "speed", "eta", "model", "overall"} <= set(steps[0])
        overall = [event.data["overall"]["done"] for event in stream.events[:-1]]
        assert overall == sorted(overall)
        last = stream.events[-1].data
        assert (last["status"], last["done"], last["total"], last["error"]) == (
            "succeeded",
            3 * MB,
            3 * MB,
            None,
        )
        assert {file["status"] for file in last["files"]} == {"ready"}
        assert place.file("one/one.gguf").read_bytes() == DATA


async def test_a_pulled_model_makes_pictures(place: Place) -> None:
    """Requests for it say how to get it before, and nothing is fetched for them; after the pull it draws."""
    async with place.serve() as app:
        fields = {"prompt": "a cat", "model": "runs", "size": "64x64", "steps": 1}
        status, body = await app.post("/v1/images/generations", **fields)
        assert (status, body["error"]["code"]) == (404, "model_not_downloaded")
        assert "gguf-imagegen pull runs" in body["error"]["message"]
        assert (await pull(app, "runs")).events[-1].event == "done"
        status, body = await app.post("/v1/images/generations", **fields)
        assert status == 200, body


async def test_a_repository_that_no_catalog_knows(place: Place, hub: HubServer) -> None:
    """Its model is found, pulled, kept and served under its name, and under its address."""
    for source in ("tiny.gguf", "tae.gguf"):
        hub.repos.setdefault("some/new", Repo({})).files[source] = hub.repos["org/tiny"].files[source]
    async with place.serve() as app:
        assert (await pull(app, "hf.co/some/new")).events[-1].event == "done"
        for name in ("new", "hf.co/some/new", "some/new"):
            body = {"model": name, "prompt": "a cat", "size": "64x64", "steps": 1}
            status, answer = await app.post("/v1/images/generations", **body)
            assert status == 200, answer
        assert "new" in {model["id"] for model in (await app.get("/v1/models"))[1]["data"]}
    async with place.serve() as app:
        assert app.service.catalog.on_disk(app.service.catalog.get("new"))


async def test_a_split_repository(place: Place, hub: HubServer, tmp_path: Path) -> None:
    """Its parts are one file of the progress, and one that draws."""
    parts = split_gguf(place.folder / "tiny-random.gguf", tmp_path, 20)
    stated = [hub.add("some/split", part.name, part.read_bytes()) for part in parts]
    hub.repos["some/split"].files["tae.gguf"] = hub.repos["org/tiny"].files["tae.gguf"]
    async with place.serve() as app:
        done = (await pull(app, "hf.co/some/split")).events[-1]
        assert done.event == "done"
        (main,) = [file for file in done.data["files"] if "joined" in file["file"]]
        assert main["file"] == "some/split/tiny-random.joined.gguf"
        assert done.data["done"] == done.data["total"] > sum(each["bytes"] for each in stated)
        body = {"model": "split", "prompt": "a cat", "size": "64x64", "steps": 1}
        status, answer = await app.post("/v1/images/generations", **body)
        assert status == 200, answer


async def test_without_a_stream(place: Place) -> None:
    """`"stream": false` answers 202 at once, and the state can be read until after the end."""
    async with place.serve() as app:
        status, body = await app.post(PULL, model="two", stream=False)
        assert (status, body["object"], body["model"]) == (202, "model.pull", "two")
        assert (await ended(app, "two"))["status"] == "succeeded"
        assert (await pull(app, "two")).events[-1].data["files"][0]["fetched"] is False


async def test_a_second_client_attaches(place: Place, hub: HubServer) -> None:
    """Two clients that ask for one model follow one pull, and what is known is told to the second at once."""
    async with place.serve() as app, following(app, "two", hub, MB) as first:
        async with app.session.post(app.url + PULL, json={"model": "two"}) as second:
            begin = await second.content.readuntil(b"\n\n")
            assert b'"status":"planned"' in begin
            hub.release()
            streams = [read_stream(await first.text()), read_stream((begin + await second.read()).decode())]
        for stream in streams:
            assert stream.events[0].data["status"] == "planned"
            assert stream.events[-1].event == "done"
        assert hub.sent == 2 * MB


async def test_a_client_that_leaves(place: Place, hub: HubServer) -> None:
    """A pull goes on when its client has left."""
    async with place.serve() as app:
        async with following(app, "two", hub, MB) as answer:
            answer.close()
        hub.release()
        assert (await ended(app, "two"))["status"] == "succeeded"
        assert place.file("two/two.gguf").read_bytes() == DATA[::-1]


async def test_cancel(place: Place, hub: HubServer) -> None:
    """DELETE really ends a pull that hangs, its followers are told, and the next pull goes on from there."""
    async with place.serve() as app, following(app, "two", hub, MB) as answer:
        status, body = await asyncio.wait_for(delete(app, f"{PULL}/two"), 5)
        assert (status, body["status"], body["error"]["code"]) == (200, "cancelled", "cancelled")
        last = read_stream(await answer.text()).events[-1]
        assert (last.event, last.data["error"]["code"]) == ("error", "cancelled")
        hub.release()
        assert (await pull(app, "two")).events[-1].event == "done"
        assert (hub.contents[-1].range or "").startswith("bytes=")
        assert await delete(app, f"{PULL}/two") == (200, await ended(app, "two"))


async def test_pulls_wait_for_one_another(place: Place, hub: HubServer) -> None:
    """One model at a time; one that waits can be cancelled, or comes when it is its turn."""
    async with place.serve(heartbeat=0.05) as app, following(app, "two", hub, MB) as first:
        waiting = asyncio.create_task(pull(app, "one"))
        status, body = await app.post(PULL, model="runs", stream=False)
        assert (status, body["status"]) == (202, "waiting")
        _, body = await delete(app, f"{PULL}/runs")
        assert body["status"] == "cancelled"
        hub.release()
        assert read_stream(await first.text()).events[-1].event == "done"
        assert (await waiting).events[-1].event == "done"
        assert not place.file("tiny").exists()


async def test_heartbeats(place: Place, hub: HubServer) -> None:
    """While nothing comes from the hub, comments keep the connection alive."""
    async with place.serve(heartbeat=0.02) as app, following(app, "two", hub, MB) as answer:
        seen = b""
        while b": hb\n\n: hb\n\n" not in seen:
            seen += await asyncio.wait_for(answer.content.readany(), 10)
        hub.release()
        assert b"event: done" in await answer.read()


async def test_errors_in_the_stream(place: Place) -> None:
    """What goes wrong at the hub is an `error` event with code and words, without a path of this machine."""
    async with place.serve() as app:
        stream = await pull(app, "secret")
        last = stream.events[-1]
        assert (last.event, last.data["error"]["code"]) == ("error", "hub_token_missing")
        assert "https://huggingface.co/org/secret is gated" in last.data["error"]["message"]
        assert str(place.folder) not in json.dumps(last.data)
        assert (await ended(app, "secret"))["status"] == "failed"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"model": 7}, 400, "invalid_request"),
        ({"model": "x" * 501}, 400, "invalid_request"),
        ({"model": "nothing"}, 404, "model_not_found"),
        ({"model": "two:q4"}, 404, "model_not_found"),
        ({"model": "bare"}, 404, "model_not_downloaded"),
        ({"model": "http://169.254.169.254/org/one/resolve/main/one.gguf"}, 400, "invalid_request"),
        ({"model": "hf.co/org/nothing"}, 404, "hub_repository_not_found"),
    ],
)
async def test_refusals(place: Place, body: dict[str, Any], status: int, code: str) -> None:
    """What cannot be pulled is refused before a stream begins."""
    async with place.serve() as app:
        got, answer = await app.post(PULL, **body)
        assert (got, answer["error"]["code"]) == (status, code)


async def test_pulls_that_never_were(place: Place) -> None:
    """State and cancel of a model that was not pulled are 404."""
    async with place.serve() as app:
        status, body = await app.get(f"{PULL}/two")
        assert (status, body["error"]["code"]) == (404, "pull_not_found")
        status, body = await delete(app, f"{PULL}/two")
        assert (status, body["error"]["code"]) == (404, "pull_not_found")


async def test_remove(place: Place) -> None:
    """DELETE with `files=true` removes the files, once; then the model is absent and can be pulled again."""
    async with place.serve() as app:
        await pull(app, "two")
        status, body = await delete(app, "/v1/models/two?files=true")
        assert status == 200, body
        assert body == {
            "id": "two", "object": "model", "deleted": True, "removed": ["org/two/two.gguf"], "kept": [],
            "freed": 2 * MB,
        }  # fmt: skip
        assert not place.file("two").exists()
        status, body = await delete(app, "/v1/models/two?files=true")
        assert (status, body["error"]["code"]) == (404, "model_not_downloaded")
        status, body = await delete(app, "/v1/models/embedded?files=true")
        assert (status, body["error"]["code"]) == (400, "unsupported_operation")
        assert (await pull(app, "two")).events[-1].event == "done"


async def test_delete_means_the_memory(place: Place) -> None:
    """Without `files=true` DELETE unloads, as often as one likes, and leaves every file where it is."""
    async with place.serve() as app:
        await pull(app, "two")
        before = sorted(place.folder.rglob("*"))
        for name in ("tiny-random", "tiny-random", "two", "embedded", "bare"):
            for query in ("", "?files=false", "?files=0"):
                status, body = await delete(app, f"/v1/models/{name}{query}")
                assert status == 200, body
                assert body == {
                    "id": name, "object": "model", "deleted": False, "removed": [], "kept": [], "freed": 0,
                }  # fmt: skip

        async def unloaded() -> bool:
            return bool((await app.get("/v1/models/tiny-random"))[1]["meta"]["state"] == "ready")

        await eventually("the model is unloaded", unloaded)
        status, body = await delete(app, "/v1/models/two?files=please")
        assert (status, body["error"]["param"]) == (400, "files")
        status, body = await delete(app, "/v1/models/nobody")
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert sorted(place.folder.rglob("*")) == before


async def test_remove_refuses_what_is_in_use(place: Place, hub: HubServer) -> None:
    """A model that is loaded or being pulled is not removed, and the answer says what to do first."""
    async with place.serve() as app:

        async def loaded() -> bool:
            return bool((await app.get("/v1/models/tiny-random"))[1]["meta"]["state"] == "loaded")

        await eventually("the model is loaded", loaded)
        status, body = await delete(app, "/v1/models/tiny-random?files=true")
        assert (status, body["error"]["code"]) == (409, "model_busy")
        assert "POST /v1/models/tiny-random/unload first" in body["error"]["message"]
        async with following(app, "two", hub, MB):
            status, body = await delete(app, "/v1/models/two?files=true")
            assert (status, body["error"]["code"]) == (409, "model_busy")
            assert "DELETE /v1/models/pull/two first" in body["error"]["message"]
            hub.release()


async def test_the_end_of_the_server(place: Place, hub: HubServer) -> None:
    """A server that ends breaks off its pulls, tells those who follow, and leaves what has arrived."""
    async with place.serve() as app:
        hub.faults.hold_after = MB
        follower = asyncio.create_task(pull(app, "two"))
        await arrived(app)
        await asyncio.wait_for(app.app.shutdown(), 5)
        last = (await follower).events[-1]
        assert (last.event, last.data["error"]["code"]) == ("error", "cancelled")
    assert len(list(place.folder.rglob("*.partial"))) == 1
