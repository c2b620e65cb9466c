"""What else may befall a cluster of real nodes; each takes Ray a while, so `--all` alone has them."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil
import pytest

from tests.pool.ray.conftest import Cluster, Front, until
from tests.pool.ray.test_cluster import command, gone, on_lane, tints

pytestmark = pytest.mark.posix


async def test_no_engine_outlives_its_raylet(front: Front, cluster: Cluster) -> None:
    """A node's processes end within 5 s, its job is done elsewhere, and the node joins again."""
    await front.lanes(2)
    node = cluster.node("b")
    await front.lanes(1, "b")
    jobs = [front.picture(seed=seed, steps=20) for seed in (31, 32, 33)]
    await on_lane(front, "b")
    actors, raylet = node.actors, node.raylet
    assert actors
    raylet.kill()
    died = time.monotonic()
    await until(lambda: not any(map(psutil.Process.is_running, actors)), "the end of the actors")
    assert time.monotonic() - died < 5
    assert [tints(await job) for job in jobs] == [[31], [32], [33]]
    await front.lanes(1, "b")
    node.end()
    await until(lambda: gone(front, "b"), "the end of b")


async def test_a_frozen_lane_is_given_up_and_its_late_events_refused(front: Front, cluster: Cluster) -> None:
    """What it says when it wakes is of an attempt that is over."""
    await front.lanes(2)
    late = (await front.health())["cluster"]["late_events"]
    making = front.picture(seed=41, steps=30)
    await on_lane(front, "a")
    actors = cluster.nodes["a"].actors
    for actor in actors:
        actor.suspend()
    frozen = time.monotonic()

    async def lost() -> bool:
        return any("silent" in each["why"] for each in (await front.health())["cluster"]["lost"])

    await until(lost, "the loss")
    assert time.monotonic() - frozen < 10
    for actor in actors:
        with contextlib.suppress(psutil.Error):
            actor.resume()
    assert tints(await making) == [41]
    await front.lanes(2)
    assert (await front.health())["cluster"]["late_events"] >= late


async def test_a_node_is_drained_before_it_stops(front: Front, cluster: Cluster) -> None:
    """By the command, and by the signal that stops it: no job fails."""
    await front.lanes(2)
    node = cluster.node("c")
    await front.lanes(1, "c")
    jobs = [front.picture(seed=seed, steps=15) for seed in (61, 62, 63)]
    await on_lane(front, "c")
    drained = await asyncio.to_thread(command, front, "drain", "c")
    assert drained.stdout == "c: draining\n"
    assert [tints(await job) for job in jobs] == [[61], [62], [63]]

    async def empty() -> bool:
        return bool(await front.status("c") == "drained")

    await until(empty, "that c is drained")
    assert "drained" in (await asyncio.to_thread(command, front, "status")).stdout
    node.end()
    await until(lambda: gone(front, "c"), "the end of c")
    await stopped_by_signal(front, cluster)


async def stopped_by_signal(front: Front, cluster: Cluster) -> None:
    node = cluster.node("d", "--grace", "60")
    await front.lanes(1, "d")
    jobs = [front.picture(seed=seed, steps=15) for seed in (71, 72, 73)]
    await on_lane(front, "d")
    lost = len((await front.health())["cluster"]["lost"])
    node.process.terminate()
    assert [tints(await job) for job in jobs] == [[71], [72], [73]]
    assert await asyncio.to_thread(node.process.wait, 60) == 0
    await until(lambda: gone(front, "d"), "the end of d")
    assert len((await front.health())["cluster"]["lost"]) == lost
