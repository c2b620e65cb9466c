"""A cluster of real nodes on this machine: who dies, what is done about it, and what callers notice of it."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import pytest
from PIL import Image

from tests.pool.ray.conftest import Cluster, Front, until

pytestmark = pytest.mark.posix


def tint(item: dict[str, Any]) -> int:
    """The seed as the fake engine draws it."""
    with Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))) as image:
        pixel = image.convert("RGB").getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return int(pixel[0])


def tints(answer: tuple[int, Any]) -> list[int]:
    status, body = answer
    assert status == 200, body
    return [tint(item) for item in body["data"]]


async def on_lane(front: Front, node: str) -> str:
    """The id of a job that a lane of this node works on."""

    async def job() -> str | None:
        lanes = (await front.health())["lanes"]
        return next(
            (each["job"] for each in lanes if each["job"] and each["name"].startswith(f"{node}/")), None
        )

    return str(await until(job, f"work on {node}"))


async def test_a_server_without_models_or_devices_makes_pictures(front: Front) -> None:
    """Its nodes have them; health and metrics say who does what."""
    await front.lanes(2)
    answers = await asyncio.gather(*(front.picture(seed=seed) for seed in range(1, 5)))
    assert [tints(answer) for answer in answers] == [[1], [2], [3], [4]]
    health = await front.health()
    (node,) = [each for each in health["cluster"]["nodes"] if each["name"] == "a"]
    assert (node["status"], node["devices"]) == ("ready", ["cpu:0", "cpu:1"])
    assert node["models"] == ["tiny-random"]
    _, models = await front.app.get("/v1/models")
    assert models["data"][0]["meta"]["state"] == "loaded"
    async with front.app.session.get(f"{front.app.url}/metrics") as answer:
        text = await answer.text()
    assert 'imagegen_cluster_nodes{status="ready"} 1.0' in text
    assert "imagegen_cluster_joined 1.0" in text
    assert "imagegen_lanes_wanted 0.0" in text
    assert 'imagegen_lane_status{lane="a/cpu:0",status="idle"} 1.0' in text


async def test_a_cancel_reaches_the_engine(front: Front) -> None:
    """Which ends at once; the lane is free for the next job."""
    await front.lanes(2)
    slow = front.picture(steps=100)
    job = await on_lane(front, "a")
    async with front.app.session.delete(f"{front.app.url}/v1/jobs/{job}") as answer:
        assert answer.status == 200
    assert (await slow)[0] == 499
    await front.lanes(2)
    assert tints(await front.picture(seed=9)) == [9]


async def test_a_killed_actor_costs_one_attempt(front: Front, cluster: Cluster) -> None:
    """The job goes on elsewhere with the pictures that are missing, and a new lane comes."""
    await front.lanes(2)
    making = front.picture(seed=20, n=3, steps=10)
    job = await on_lane(front, "a")

    async def one_made() -> bool:
        _, body = await front.app.get(f"/v1/jobs/{job}")
        return len(body["data"]) > 0

    await until(one_made, "a picture")
    lane = front.app.scheduler.jobs[job].lane
    for actor in cluster.nodes["a"].actors:  # one of the two works on it
        actor.kill()
    assert tints(await making) == [20, 21, 22]
    done = front.app.scheduler.jobs[job]
    assert any("was lost" in words for words in done.warnings)
    assert len(done.images) == 3
    lost = (await front.health())["cluster"]["lost"]
    assert lane in [each["lane"] for each in lost]
    await front.lanes(2)


async def test_a_head_that_does_not_answer_stops_nothing(front: Front, cluster: Cluster) -> None:
    """Lanes go on, health says so, and all is well when it is back."""
    await front.lanes(2)
    gcs = cluster.gcs
    gcs.suspend()
    try:

        async def away() -> bool:
            return bool((await front.health())["cluster"]["status"] == "away")

        await until(away, "that the head is away")
        assert tints(await front.picture(seed=51)) == [51]
    finally:
        gcs.resume()

    async def joined() -> bool:
        return bool((await front.health())["cluster"]["status"] == "joined")

    await until(joined, "that the head is back")
