"""A server with a set that is killed, and the next one, which goes on with it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import ServerProcess
from tests.survival import Client, client_of, client_of_mortal, eventually

Serve = Callable[..., ServerProcess]
SETS = "/v1/images/sets"
REPOSITORY = Path(__file__).parents[1]
BACKEND = """\
from tests.fake_engines import FakeBackend, QuickEngine


class Unhurried(QuickEngine):
    async def at_step(self, step):
        await self.pause(0.03)


def backend(settings):
    return FakeBackend(settings, Unhurried)
"""


async def done(client: Client, path: str, count: int) -> Any:
    """The set when so many items have ended."""

    async def look() -> bool:
        (found,) = (await client.get(SETS)).body["data"]
        return bool(found["done"] >= count)

    await eventually(f"{count} items have ended", look)
    return (await client.get(path)).body


async def test_a_set_over_a_kill(serve: Serve, tmp_path: Path) -> None:
    """Fifty pictures: each is made once, those from before keep their addresses, a cancelled one stays so."""
    (tmp_path / "unhurried.py").write_text(BACKEND)
    flags = ("--state-dir", str(tmp_path / "state"), "--backend", "unhurried:backend")
    env = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    first = serve(*flags, env=env)
    prompts = [f"cat {number}" for number in range(25)]
    fields = {"prompts": prompts, "matrix": {"seed": [1, 2]}, "steps": 1, "size": "64x64"}
    async with client_of_mortal(first) as client:
        made = (await client.send("POST", SETS, json=fields)).body
        path = f"{SETS}/{made['id']}"
        assert (await client.send("DELETE", f"{path}/items/40")).body["status"] == "cancelled"
        before = await done(client, path, 10)
        first.kill()
    assert before["ended"] is None
    second = serve(*flags, env=env)
    async with client_of(second) as client:
        after = await done(client, path, 50)
        jobs = (await client.get("/v1/jobs?limit=200")).body["data"]
        sheet = await client.session.get(f"{second.url}{path}/sheet")
        assert sheet.status == 200
    assert [item["index"] for item in after["items"] if item["status"] != "succeeded"] == [40]
    assert after["items"][40]["status"] == "cancelled"
    kept = [item["name"] for item in before["items"] if item["name"]]
    assert set(kept) <= {item["name"] for item in after["items"]}
    assert len({item["name"] for item in after["items"] if item["name"]}) == 49
    assert sorted(job["id"] for job in jobs) == sorted(item["job"] for item in after["items"])
    assert [item["seed"] for item in after["items"]] == [1, 2] * 25


async def test_the_real_engine(serve: Serve, tmp_path: Path) -> None:
    """Killed in the middle of its second picture, the set has the pictures that single requests have."""
    flags = ("--state-dir", str(tmp_path / "state"))
    shared: dict[str, Any] = {"steps": 4, "size": "128x128", "seed": 5}
    first = serve(*flags)
    async with client_of_mortal(first) as client:
        fields = {**shared, "prompts": ["a", "b", "c"]}
        path = f"{SETS}/{(await client.send('POST', SETS, json=fields)).body['id']}"
        await done(client, path, 1)
        first.kill()
    second = serve(*flags)
    async with client_of(second) as client:
        after = await done(client, path, 3)
        single = await client.make(**shared, prompt="b")
        async with client.session.get(after["items"][1]["url"]) as answer:
            drawn = await answer.read()
    assert after["status"] == "succeeded"
    assert single.picture().tobytes() == _pixels(drawn)


def _pixels(data: bytes) -> bytes:

    return Image.open(io.BytesIO(data)).tobytes()
