"""An upgrade of a cluster while it works, machine by machine, as docs/cluster.md tells."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gguf_imagegen.pool.ray import messages
from tests.conftest import ServerProcess
from tests.pool.ray.conftest import Cluster, speaking, until

pytestmark = pytest.mark.posix

JOBS = 24
NEWER = 99


class Upgrade:
    """A server that is restarted, and its jobs."""

    def __init__(self, server: ServerProcess, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session

    async def get(self, path: str) -> Any:
        self.server.log()  # else its pipe is full one day, and it stands still
        async with self.session.get(self.server.url + path) as answer:
            return await answer.json()

    async def submit(self) -> None:
        for seed in range(JOBS):
            body = {"prompt": "a cat", "size": "64x64", "steps": 10, "seed": seed}
            async with self.session.post(
                f"{self.server.url}/v1/images/generations", json=body, headers={"Prefer": "respond-async"}
            ) as answer:
                assert answer.status == 202, await answer.text()

    async def node(self, name: str) -> dict[str, Any]:
        found = (await self.get("/health"))["cluster"]["nodes"]
        return next((each for each in found if each["name"] == name), {"status": "gone", "why": ""})

    async def reaches(self, status: str, *names: str) -> None:
        async def all_have() -> bool:
            return all([(await self.node(name))["status"] == status for name in names])

        await until(all_have, f"{names} {status}")

    async def refused(self) -> str:
        async def why() -> str | None:
            found = (await self.get("/health"))["cluster"]["nodes"]
            return next((each["why"] for each in found if each["status"] == "refused"), None)

        return str(await until(why, "a refusal"))

    async def statuses(self) -> list[str]:
        return [job["status"] for job in (await self.get(f"/v1/jobs?limit={JOBS}"))["data"]]

    async def drain(self, name: str) -> None:
        line = [sys.executable, "-m", "gguf_imagegen", "cluster", "drain", name, "--url", self.server.url]
        await asyncio.to_thread(subprocess.run, line, check=True, timeout=60, stdout=subprocess.DEVNULL)
        await self.reaches("drained", name)


async def test_a_rolling_upgrade_fails_no_job(model_dir: Path, tmp_path: Path) -> None:
    """Half of the nodes, the server, the other half; the protocol changes, and both sides say so."""
    newer = speaking(NEWER, tmp_path)
    cluster = Cluster(model_dir)
    try:
        await cluster.start()
        for name in ("x", "y"):
            cluster.node(name)
        async with aiohttp.ClientSession() as session:
            made = Upgrade(cluster.serve(tmp_path), session)
            try:
                await made.reaches("ready", "x", "y")
                await made.submit()
                await done_in_turn(made, cluster, newer)
            finally:
                made.server.kill()
    finally:
        await cluster.stop()


async def done_in_turn(made: Upgrade, cluster: Cluster, newer: Path) -> None:
    await made.drain("x")
    cluster.nodes["x"].end()
    cluster.node("x", cwd=newer)
    why = await made.refused()
    assert f"version {NEWER}" in why
    assert f"version {messages.WIRE}" in why
    assert "queued" in await made.statuses()
    made.server.stop()
    made.server = cluster.serve(newer, package=newer)
    await made.reaches("ready", "x")
    assert f"version {messages.WIRE}" in await made.refused()
    cluster.nodes["y"].process.terminate()
    assert await asyncio.to_thread(cluster.nodes["y"].process.wait, 60) == 0
    cluster.nodes["y"].end()
    cluster.node("y", cwd=newer)
    await made.reaches("ready", "x", "y")

    async def all_done() -> bool:
        found = await made.statuses()
        assert not {"failed", "cancelled"} & set(found), made.server.log()
        return found.count("succeeded") == JOBS

    await until(all_done, "all jobs")
