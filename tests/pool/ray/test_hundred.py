"""A hundred jobs on real engines while all that can die does: none is lost, and none made twice."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.pool.ray.conftest import Cluster, until

pytestmark = pytest.mark.posix

JOBS = 100
PATIENCE = 240.0
SEEDS = 50
"""Each is drawn twice, perhaps on two machines."""


class Hundred:
    """The jobs, and the server that is restarted under them."""

    def __init__(self, cluster: Cluster, folder: Path, session: aiohttp.ClientSession) -> None:
        self.cluster = cluster
        self.session = session
        self.ids: list[str] = []
        self._folder = folder
        self.server = cluster.serve(folder)

    async def get(self, path: str) -> Any:
        async with self.session.get(self.server.url + path) as answer:
            return await answer.json()

    async def submit(self) -> None:
        for number in range(JOBS):
            body = {"prompt": "a cat", "size": "64x64", "steps": 2, "seed": 1000 + number % SEEDS}
            async with self.session.post(
                f"{self.server.url}/v1/images/generations", json=body, headers={"Prefer": "respond-async"}
            ) as answer:
                assert answer.status == 202, await answer.text()
                self.ids.append((await answer.json())["id"])

    async def jobs(self) -> list[Any]:
        self.server.log()  # else its pipe is full one day, and it stands still
        return list((await self.get(f"/v1/jobs?limit={JOBS}"))["data"])

    async def done(self, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while len(found := [job for job in await self.jobs() if job["status"] == "succeeded"]) < count:
            failed = [job["error"] for job in await self.jobs() if job["status"] == "failed"]
            assert not failed, self.server.log()
            assert time.monotonic() < deadline, f"{len(found)} of {count}: {self.server.log()}"
            await asyncio.sleep(0.2)

    async def kill_engine(self) -> None:
        worker = await until(lambda: self.cluster.nodes["p"].named("sdcpp.worker"), "an engine")
        worker[0].kill()

    async def kill_actor(self) -> None:
        actors = await until(lambda: self.cluster.nodes["p"].actors, "an actor")
        actors[0].kill()

    async def kill_raylet(self) -> None:
        self.cluster.nodes["q"].raylet.kill()

    async def kill_head(self) -> None:
        assert self.cluster.head is not None
        self.cluster.gcs.kill()
        await self.cluster.head.wait()
        await self.cluster.start()

    async def kill_server(self) -> None:
        self.server.kill()
        self.server = self.cluster.serve(self._folder)


@asynccontextmanager
async def hundred(model_dir: Path, folder: Path) -> AsyncIterator[Hundred]:
    cluster = Cluster(model_dir)
    try:
        await cluster.start()
        cluster.node("p", "--cpu-lanes", "2", backend="sdcpp")
        cluster.node("q", backend="sdcpp")
        async with aiohttp.ClientSession() as session:
            made = Hundred(cluster, folder, session)
            try:
                yield made
            finally:
                made.server.kill()
    finally:
        await cluster.stop()


async def test_a_hundred_jobs_survive_every_death(model_dir: Path, tmp_path: Path) -> None:
    """An engine, an actor, a raylet, the head and the server are killed, one after the other."""
    async with hundred(model_dir, tmp_path) as made:

        async def ready() -> bool:
            return bool(len((await made.get("/health"))["lanes"]) == 3)

        await until(ready, "three lanes", patience=300)
        await made.submit()
        deaths: list[Callable[[], Coroutine[Any, Any, None]]] = [
            made.kill_engine, made.kill_actor, made.kill_raylet, made.kill_head, made.kill_server,
        ]  # fmt: skip
        for number, death in enumerate(deaths, 1):
            await made.done(12 * number)
            await death()
        await made.done(JOBS)
        assert {job["id"] for job in await made.jobs()} == set(made.ids)
        assert len(list((tmp_path / "state").rglob("*.png"))) == JOBS
        hashes: dict[int, set[str]] = {}
        for job in await made.jobs():
            (item,) = job["data"]
            async with made.session.get(item["url"]) as answer:
                digest = hashlib.sha256(await answer.read()).hexdigest()
            hashes.setdefault(item["seed"], set()).add(digest)
    assert len(hashes) == SEEDS
    assert {len(found) for found in hashes.values()} == {1}
    assert len({digest for found in hashes.values() for digest in found}) == SEEDS
