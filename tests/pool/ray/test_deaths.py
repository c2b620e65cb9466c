"""What else may befall a cluster of real nodes; each takes Ray a while, so `--all` alone has them."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys

import psutil
import pytest

from tests.api.client import DONE
from tests.conftest import RunningApp
from tests.pool.ray.conftest import Cluster, Front, NodeProcess, clock, until
from tests.pool.ray.test_cluster import on_lane, tints
from tests.pool.ray.test_silence import listening

pytestmark = pytest.mark.posix


async def gone(front: Front, node: str) -> bool:
    return await front.status(node) is None


def command(front: Front, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "gguf_imagegen", "cluster", *words, "--url", front.app.url]
    return subprocess.run(line, capture_output=True, text=True, timeout=60)


async def test_no_engine_outlives_its_raylet(front: Front, cluster: Cluster) -> None:
    """A node's processes end within 5 s, its job is done elsewhere, and the node joins again."""
    await front.lanes(2)
    node = cluster.node("b")
    await front.lanes(1, "b")
    jobs = [front.picture(seed=seed, steps=20) for seed in (31, 32, 33)]
    await on_lane(front, "b")
    actors, raylet = node.actors, node.raylet
    assert actors
    async with clock() as seconds:
        raylet.kill()
        await until(lambda: not any(map(psutil.Process.is_running, actors)), "the end of the actors")
        assert seconds() < 5
    assert [tints(await job) for job in jobs] == [[31], [32], [33]]
    await front.lanes(1, "b")
    node.end()
    await until(lambda: gone(front, "b"), "the end of b")


async def test_no_engine_outlives_its_command(front: Front, cluster: Cluster) -> None:
    """Neither, if `node` itself is killed, where Ray would end in its own time; the job is done elsewhere."""
    await front.lanes(2)
    node = cluster.node("e")
    await front.lanes(1, "e")
    jobs = [front.picture(seed=seed, steps=20) for seed in range(34, 39)]
    await on_lane(front, "e")
    actors = node.actors
    async with clock() as seconds:
        node.process.kill()
        await until(lambda: not any(map(psutil.Process.is_running, actors)), "the end of the actors")
        assert seconds() < 5
    assert [tints(await job) for job in jobs] == [[seed] for seed in range(34, 39)]
    node.end()
    await until(lambda: gone(front, "e"), "the end of e")


async def test_a_frozen_lane_is_given_up_and_its_late_events_refused(front: Front, cluster: Cluster) -> None:
    """What it says when it wakes is of an attempt that is over."""
    await front.lanes(2)
    late = (await front.health())["cluster"]["late_events"]
    async with listening(front.app, seed=41, steps=30) as heard:
        await on_lane(front, "a")
        actors = cluster.nodes["a"].actors

        async def lost() -> bool:
            return any("silent" in each["why"] for each in (await front.health())["cluster"]["lost"])

        async with clock() as seconds:
            for actor in actors:
                actor.suspend()
            await until(lost, "the loss")
            assert seconds() < 10
        for actor in actors:
            with contextlib.suppress(psutil.Error):
                actor.resume()
        await until(lambda: heard.events and heard.events[-1].data == DONE, "the picture")
    assert heard.longest < 10
    await front.lanes(2)
    assert (await front.health())["cluster"]["late_events"] >= late


async def test_a_bridge_that_dies_is_made_again(front: Front, cluster: Cluster) -> None:
    """Its lanes end with it, and what they did starts anew on new ones; whoever listens hears something."""
    await front.lanes(2)
    async with listening(front.app, seed=45, steps=30) as heard:
        job = await on_lane(front, "a")
        actors = cluster.nodes["a"].actors
        (bridge,) = [
            each for each in psutil.Process().children() if "pool.ray.bridge" in " ".join(each.cmdline())
        ]
        bridge.kill()
        await until(lambda: not any(map(psutil.Process.is_running, actors)), "the end of the actors")
        await until(lambda: heard.events and heard.events[-1].data == DONE, "the picture")
    assert heard.longest < 10
    assert any("was lost" in words for words in front.app.scheduler.jobs[job].warnings)
    await front.lanes(2)


async def test_a_node_draws_what_this_machine_draws(
    front: Front, cluster: Cluster, running: RunningApp
) -> None:
    """The real engine, byte for byte, with all that is written in the file."""
    drawn = {"seed": 5, "steps": 3, "prompt": "the same"}
    async with running(any_model=True) as here:
        made = await here.post("/v1/images/generations", **drawn, size="64x64")
    await front.lanes(2)
    node = cluster.node("real", backend="sdcpp")
    await front.lanes(1, "real")
    await asyncio.to_thread(command, front, "drain", "a")
    there = await front.picture(**drawn)
    node.end()
    cluster.nodes["a"].end()
    await until(lambda: gone(front, "a"), "the end of a")
    cluster.node("a", "--cpu-lanes", "2")
    assert there[0] == made[0] == 200
    assert there[1]["data"][0]["b64_json"] == made[1]["data"][0]["b64_json"]


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


async def test_a_wrong_token_is_told_in_words(cluster: Cluster) -> None:
    """And ends the command, where Ray itself would wait."""
    node = cluster.node("x", cluster_token="f" * 64)
    assert await asyncio.to_thread(node.process.wait, 120) == 1
    assert "does not take this machine's token" in said(node)


def said(node: NodeProcess) -> str:
    assert node.process.stderr is not None
    return node.process.stderr.read().decode()
