"""Sets: many pictures as one job, with items that are followed, cancelled and fail one by one."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import EngineEvent
from tests.api.client import SMALL, eventually
from tests.conftest import App, RunningApp
from tests.fake_engines import FailsGeneration, NeverAnswers, QuickEngine
from tests.weights import write_lora

SETS = "/v1/images/sets"
OTHER = {"Idempotency-Key": "other"}
ONE = {"size": "64x64", "steps": 1}
CATALOG = """\
version: 1
models:
  tiny-random:
    family: ovis-image
    files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}
    defaults: {size: 128x128, steps: 2, cfg_scale: 1.0}
  twin:
    family: ovis-image
    files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}
    defaults: {size: 128x128, steps: 3, cfg_scale: 1.0}
"""


class FailsOnOdd(QuickEngine):
    """Reports a failure for every odd seed."""

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        made = FailsGeneration().generate(spec) if spec.seed % 2 else super().generate(spec)
        async for event in made:
            yield event


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG)
    return path


@pytest_asyncio.fixture
async def app(running: RunningApp, catalog: Path) -> AsyncIterator[App]:
    async with running(engine=QuickEngine, catalog=catalog, max_set=60) as app:
        yield app


async def make(app: App, **fields: Any) -> Any:
    """The set that was accepted."""
    status, body = await app.post(SETS, **{**ONE, **fields})
    assert status == 202, body
    return body


async def ended(app: App, made: Any) -> Any:
    """The set at its end."""

    async def over() -> Any:
        _, body = await app.get(f"{SETS}/{made['id']}")
        return body if body["ended"] else None

    return await eventually("the set has ended", over)


async def first_runs(app: App, made: Any) -> None:
    async def runs() -> Any:
        _, body = await app.get(f"{SETS}/{made['id']}")
        return body["items"][0]["status"] == "running"

    await eventually("the first item runs", runs)


async def delete(app: App, path: str) -> tuple[int, Any]:
    async with app.session.delete(app.url + path) as answer:
        return answer.status, await answer.json()


async def events(app: App, made: Any) -> list[Any]:
    """The JSON of all frames of its stream, to the end."""
    async with app.session.get(app.url + made["events"]) as answer:
        text = await answer.text()
    lines = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_a_matrix(app: App) -> None:
    """An item for each combination in order, with its own parameters in the answer, the job and the file."""
    made = await make(
        app, prompts=["a cat", "a dog"], matrix={"model": ["tiny-random", "twin"], "seed": [7, 8]}, steps=None
    )
    assert made["status"] == "queued"
    assert made["varies"] == ["model", "prompt", "steps", "seed"]
    done = await ended(app, made)
    assert (done["status"], done["n"], done["done"], done["progress"]) == ("succeeded", 8, 8, 100)
    assert [(item["model"], item["prompt"], item["seed"], item["steps"]) for item in done["items"]] == [
        (model, prompt, seed, steps)
        for model, steps in (("tiny-random", 2), ("twin", 3))
        for prompt in ("a cat", "a dog")
        for seed in (7, 8)
    ]
    last = done["items"][-1]
    _, job = await app.get(f"/v1/jobs/{last['job']}")
    assert (job["set"], job["model"], job["n"]) == (made["id"], "twin", 1)
    async with app.session.get(last["url"]) as answer:
        text = Image.open(io.BytesIO(await answer.read())).info["parameters"]
    for words in ("a dog", "Seed: 8", "Steps: 3", "Model: twin"):
        assert words in text


async def test_wildcards(running: RunningApp, catalog: Path, tmp_path: Path) -> None:
    """Choices and wildcard files are expanded in sets that say so, and nowhere else."""
    (tmp_path / "colour.txt").write_text("red\nblue\n")
    asked = {"prompts": ["a __colour__ {cat|dog}"]}
    async with running(engine=QuickEngine, catalog=catalog, wildcards_dir=tmp_path) as app:
        found = await ended(app, await make(app, **asked, expand=True))
        prompts = [item["prompt"] for item in found["items"]]
        assert prompts == ["a red cat", "a red dog", "a blue cat", "a blue dog"]
        plain = await ended(app, await make(app, **asked))
        assert [item["prompt"] for item in plain["items"]] == asked["prompts"]
        _, single = await app.post("/v1/images/generations", **{**SMALL, "prompt": "a __colour__ {cat|dog}"})
        _, job = await app.get(f"/v1/jobs/{single['id']}")
        assert job["parameters"]["prompt"] == "a __colour__ {cat|dog}"


async def test_the_stream(app: App) -> None:
    """The whole set, then what changes of its items, each to its end with its picture; then the whole."""
    made = await make(app, prompts=["a", "b", "c"])
    first, *changes, last = await events(app, made)
    assert first["type"] == last["type"] == "set"
    assert {each["type"] for each in changes} <= {"item"}
    items = {item["index"]: item for item in (*first["items"], *changes)}
    assert [items[index]["status"] for index in range(3)] == 3 * ["succeeded"]
    assert all(item["url"] for item in items.values())
    assert [items[index]["name"] for index in range(3)] == [item["name"] for item in last["items"]]
    again = await events(app, made)
    assert [frame["type"] for frame in again] == ["set", "set"]


async def test_one_item_is_cancelled(running: RunningApp, catalog: Path) -> None:
    """A running one, or one whose turn has not come; the others go on."""
    async with running(engine=NeverAnswers, catalog=catalog) as app:
        made = await make(app, prompts=["a", "b", "c", "d"])
        await first_runs(app, made)
        for index in (3, 0):
            status, item = await delete(app, f"{SETS}/{made['id']}/items/{index}")
            assert (status, item["status"], item["error"]["code"]) == (200, "cancelled", "cancelled")
        _, body = await app.get(f"{SETS}/{made['id']}")
        assert [item["status"] == "cancelled" for item in body["items"]] == [True, False, False, True]
        assert (body["ended"], body["done"]) == (None, 2)
        for wrong in ("4", "x", "1" * 30):
            assert (await delete(app, f"{SETS}/{made['id']}/items/{wrong}"))[0] == 404
        status, over = await delete(app, f"{SETS}/{made['id']}")
        assert (status, over["status"], over["done"]) == (200, "cancelled", 4)
        assert {item["status"] for item in over["items"]} == {"cancelled"}
        assert not any(not job.ended for job in app.scheduler.jobs.values())
        assert (await delete(app, f"{SETS}/{made['id']}"))[1]["ended"] == over["ended"]


async def test_items_fail_alone(running: RunningApp, catalog: Path) -> None:
    """One that fails says why, and the rest is made."""
    async with running(engine=FailsOnOdd, catalog=catalog) as app:
        found = await ended(app, await make(app, prompts=["a"], matrix={"seed": [1, 2, 3, 4]}, steps=2))
        assert found["status"] == "failed"
        assert [item["status"] for item in found["items"]] == ["failed", "succeeded"] * 2
        assert found["items"][0]["error"]["code"] == "generation_failed"


async def test_others_get_their_turn(running: RunningApp, catalog: Path) -> None:
    """A set has no more jobs in the queue than there are devices, and one."""
    async with running(engine=NeverAnswers, catalog=catalog, max_queue=3) as app:
        await make(app, prompts=[str(number) for number in range(20)])

        async def queued() -> bool:
            return len(app.scheduler.jobs) == 2

        await eventually("its first jobs are there", queued)
        status, job = await post_async(app, **SMALL)
        assert (status, job["position"]) == (202, 2)


async def post_async(app: App, **fields: Any) -> tuple[int, Any]:
    path, headers = app.url + "/v1/images/generations", {"Prefer": "respond-async"}
    async with app.session.post(path, json=fields, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_the_contact_sheet(app: App) -> None:
    """A PNG of all pictures, as wide as the field that varies fastest; without any it is there, too."""
    made = await make(app, prompts=["a", "b"], matrix={"seed": [1, 2, 3]})
    await ended(app, made)
    async with app.session.get(app.url + made["sheet"]) as answer:
        assert answer.content_type == "image/png"
        sheet = Image.open(io.BytesIO(await answer.read()))
    assert sheet.width > sheet.height
    assert (128, 128, 128) in {colour for _, colour in sheet.getcolors(1 << 20) or []}


async def test_the_list(app: App) -> None:
    """The newest first, in pages, without items."""
    ids = [(await ended(app, await make(app, prompts=["a"])))["id"] for _ in range(3)]
    _, page = await app.get(f"{SETS}?limit=2")
    assert [each["id"] for each in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    _, rest = await app.get(f"{SETS}?limit=2&before={ids[1]}")
    assert ([each["id"] for each in rest["data"]], rest["has_more"]) == (ids[:1], False)
    assert "items" not in rest["data"][0]


@pytest.mark.parametrize(
    ("status", "words", "fields"),
    [
        (400, "item 1: prompt", {"prompts": ["a", " "]}),
        (404, "item 1: ", {"prompts": ["a"], "matrix": {"model": ["twin", "nothing"]}}),
        (400, "61 pictures are too many", {"prompts": ["a"], "matrix": {"seed": list(range(61))}}),
        (400, "'prompts'", {"prompt": "a", "prompts": ["b"]}),
        (400, "'events'", {"prompts": ["a"], "webhook": "https://host/hooks"}),
        (400, "as they are", {"prompts": ["a"], "enhance": True}),
        (400, "--wildcards-dir", {"prompts": ["__a__"], "expand": True}),
    ],
)
async def test_refusals(app: App, status: int, words: str, fields: dict[str, Any]) -> None:
    """Everything is checked before a set is taken."""
    found, body = await app.post(SETS, **{**ONE, **fields})
    assert found == status
    assert words in body["error"]["message"]
    assert not app.scheduler.jobs
    assert (await app.get(SETS))[1]["data"] == []


async def test_nobody_elses(running: RunningApp, catalog: Path, tmp_path: Path) -> None:
    """A caller sees its own sets alone."""
    callers = tmp_path / "callers.yaml"
    rights = {"ann": "", "bob": "", "eve": ", admin: true"}
    rows = (f"- {{name: {name}, key: {name}-key{more}}}" for name, more in rights.items())
    callers.write_text("\n".join(rows))
    async with running(engine=QuickEngine, catalog=catalog, callers=callers) as app:
        ann, bob = ({"Authorization": f"Bearer {name}-key"} for name in ("ann", "bob"))
        body = {**ONE, "prompts": ["a"]}
        async with app.session.post(app.url + SETS, json=body, headers=ann) as answer:
            made = await answer.json()
        for tail in ("", "/events", "/sheet"):
            async with app.session.get(f"{app.url}{SETS}/{made['id']}{tail}", headers=bob) as answer:
                assert answer.status == 404
        assert (await app.get(SETS, **bob))[1]["data"] == []
        assert [each["caller"] for each in (await app.get(SETS, **ann))[1]["data"]] == ["ann"]


async def test_a_dry_run(app: App) -> None:
    """What each item would be and cost, and all together; nothing is made."""
    asked = {"prompts": ["a", "b"], "matrix": {"model": ["tiny-random", "twin"]}, "dry_run": True, **ONE}
    status, before = await app.post(SETS, **asked)
    assert (status, before["object"], before["n"], before["seconds"]) == (200, "dry_run", 4, None)
    assert not app.scheduler.jobs
    await ended(app, await make(app, **{**asked, "dry_run": False}))
    _, after = await app.post(SETS, **asked)
    assert after["fits"]
    assert after["seconds"] == pytest.approx(sum(item["seconds"] for item in after["items"]))
    assert [item["model"] for item in after["items"]] == ["tiny-random", "tiny-random", "twin", "twin"]


async def test_sets_are_forgotten_with_their_jobs(running: RunningApp, catalog: Path) -> None:
    """As jobs are, after their time, and not before."""
    async with running(engine=QuickEngine, catalog=catalog, job_ttl=0.3) as app:
        made = await ended(app, await make(app, prompts=["a", "b"]))
        app.scheduler.sweep()
        assert len(app.scheduler.jobs) == 2

        async def forgotten() -> bool:
            app.service.sets.sweep()
            app.scheduler.sweep()
            return not app.scheduler.jobs

        await eventually("all is forgotten", forgotten)
        assert (await app.get(f"{SETS}/{made['id']}"))[0] == 404


class Gated(QuickEngine):
    """Makes no step before it may."""

    def __init__(self, gate: asyncio.Event) -> None:
        super().__init__()
        self._gate = gate

    async def at_step(self, step: int) -> None:
        while not self._gate.is_set():
            await self.pause(0.01)


async def test_errors_of_items_outlive_the_server(running: RunningApp, catalog: Path, tmp_path: Path) -> None:
    """Those of items that never became jobs, too."""
    gate, loras = asyncio.Event(), tmp_path / "loras"
    loras.mkdir()
    ink = write_lora(loras / "ink.gguf")
    kept = {"catalog": catalog, "state_dir": tmp_path / "state", "lora_dir": loras}
    async with running(engine=lambda: Gated(gate), **kept) as app:
        made = await make(app, prompts=["a", "b", "c", "d"], lora=[{"name": "ink"}])
        await first_runs(app, made)
        ink.unlink()
        gate.set()
        before = await ended(app, made)
    lost = before["items"][3]
    assert (before["status"], lost["status"], lost["job"]) == ("failed", "failed", None)
    assert "ink" in lost["error"]["message"]
    async with running(engine=QuickEngine, **kept) as app:
        _, after = await app.get(f"{SETS}/{made['id']}")
    assert after["status"] == "failed"
    assert after["items"][3] == lost


async def test_one_key_is_one_set(running: RunningApp, catalog: Path, tmp_path: Path) -> None:
    """At once, later, and after a restart; another body with it is refused, and a cancelled set made anew."""
    kept = {"catalog": catalog, "state_dir": tmp_path / "state"}

    async def ask(app: App, **fields: Any) -> tuple[int, Any]:
        body, key = {**ONE, "prompts": ["a"], **fields}, {"Idempotency-Key": "k"}
        async with app.session.post(app.url + SETS, json=body, headers=key) as answer:
            return answer.status, await answer.json()

    async with running(engine=QuickEngine, **kept) as app:
        (status, first), (_, second) = await asyncio.gather(ask(app), ask(app))
        assert (status, first["id"]) == (202, second["id"])
        await ended(app, first)
        assert (await ask(app))[1]["id"] == first["id"]
        status, body = await ask(app, prompts=["b"])
        assert (status, body["error"]["param"]) == (400, "Idempotency-Key")
    async with running(engine=NeverAnswers, **kept) as app:
        assert (await ask(app))[1]["id"] == first["id"]
        assert len((await app.get(SETS))[1]["data"]) == 1
        async with app.session.post(app.url + SETS, json={**ONE, "prompts": ["c"]}, headers=OTHER) as answer:
            made = await answer.json()
        await delete(app, f"{SETS}/{made['id']}")
        async with app.session.post(app.url + SETS, json={**ONE, "prompts": ["c"]}, headers=OTHER) as answer:
            assert (await answer.json())["id"] != made["id"]
