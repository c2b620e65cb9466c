"""The journal: servers and workers that are killed under mixed traffic, and what it costs to store a job."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import shutil
import signal
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from aiohttp import ClientError, ClientSession, FormData

from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.journal import Journal
from gguf_imagegen.jobs.ledger import Ledger
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.pictures.encode import encode
from gguf_imagegen.planning.plan import plan as make_plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Engine, Generate, LoadSpec, Task
from gguf_imagegen.vocabulary.events import EngineEvent, Loaded, Made, Timings
from scripts.bench.figures import Run
from scripts.bench.server import (
    DEADLINE,
    GENERATIONS,
    MODEL,
    PICTURE,
    SMALL,
    Server,
    client,
    listening,
    loaded,
    now,
    rss,
    seconds,
)

SERVER_KILLS, WORKER_KILLS = 200, 40
CLIENTS = 4
MOST_AT_ONCE = 4
LONGEST = 1.5
"""Seconds between the start of a server and its end, at most."""
WAITING = 10_000
IN_FLIGHT = 50
ASYNC = {"Prefer": "respond-async"}


class Instant:
    """Implements `vocabulary.engine.Engine`: grey pictures at once."""

    alive = True

    async def close(self) -> None:
        self.alive = False

    async def load(self, spec: LoadSpec) -> AsyncIterator[EngineEvent]:
        yield Loaded(0.0, "fake", "FAKE")

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        assert isinstance(task, Generate)
        for index in range(task.first, task.n):
            grey = RawImage(task.width, task.height, 3, bytes(task.width * task.height * 3))
            yield Made(index, grey, Timings(0, 1, 0, 1, task.steps))


class InstantBackend(SdCpp):
    """For `--backend`: the devices of stable-diffusion.cpp, and engines that do nothing."""

    def engine(self, device: Device) -> Engine:
        return Instant()


# -- kills --------------------------------------------------------------------------------------------


@dataclass
class Followed:
    """What one client saw of one job, over all restarts."""

    id: str
    ids: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    made: dict[int, str] = field(default_factory=dict)
    """Addresses of pictures by number, as they were first told."""


class Restarts:
    """Servers one after the other on one port and state folder, and clients that go on whatever happens."""

    def __init__(self, run: Run, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run = run
        self._flags = (
            "--state-dir", str(folder), "--no-ephemeral", "--port", str(self.port), "--max-queue", "1000",
        )  # fmt: skip
        self.jobs: list[Followed] = []
        self.keys: dict[str, set[str]] = {}
        self.closing = False

    async def start(self) -> Server:
        server = Server(self._run.settings, MODEL, self._flags)
        await asyncio.wait_for(listening(server), DEADLINE)
        return server

    async def traffic(self, session: ClientSession, number: int) -> None:
        """One client: some jobs at once, each followed to its end by its events."""
        chance = random.Random(number)
        while not self.closing:
            accepted = [await self._accepted(session, chance) for _ in range(chance.randint(1, MOST_AT_ONCE))]
            new = [Followed(job) for job in accepted if job is not None]
            self.jobs += new
            await asyncio.gather(*(self._follow(session, job) for job in new))

    async def _accepted(self, session: ClientSession, chance: random.Random) -> str | None:
        """The id of a job that was accepted: a set, an edit, or a request that is repeated with its key."""
        body = {**PICTURE, "size": "64x64", "steps": chance.randint(1, 12), "n": chance.randint(1, 3)}
        kind, key = chance.choice(("plain", "edit", "keyed")), str(chance.random())
        while not self.closing:
            with suppress(ClientError, ConnectionError, asyncio.TimeoutError):
                headers = {**ASYNC, "Idempotency-Key": key} if kind == "keyed" else ASYNC
                posting = (
                    session.post("/v1/images/edits", data=_form(body), headers=headers)
                    if kind == "edit"
                    else session.post(GENERATIONS, json=body, headers=headers)
                )
                async with posting as answer:
                    if answer.status == 202:
                        job = str((await answer.json())["id"])
                        self.keys.setdefault(key, set()).add(job)
                        if kind == "keyed" and chance.random() < 0.5:
                            continue  # as a client that did not get the answer
                        return job
            await asyncio.sleep(0.05)
        return None

    async def _follow(self, session: ClientSession, job: Followed) -> None:
        while not job.ends:
            with suppress(ClientError, ConnectionError, asyncio.TimeoutError):
                last = {"Last-Event-ID": str(job.ids[-1])} if job.ids else {}
                async with session.get(f"/v1/jobs/{job.id}/events", headers=last) as answer:
                    if answer.status == 404:
                        job.ends.append("lost")
                        return
                    await _read(answer.content, job)
            await asyncio.sleep(0.02)
        for item in (await _object(session, job.id))["data"]:
            job.made[item["index"]] = re.sub(r"^https?://[^/]+", "", item["url"])


def _form(body: dict[str, Any]) -> FormData:
    pixels = np.random.default_rng(body["steps"]).integers(0, 256, (64, 64, 3), np.uint8)
    form = FormData({name: str(value) for name, value in body.items()})
    form.add_field("image", encode(pixels.tobytes(), 64, 64, format="png"), filename="a.png")
    return form


async def _read(lines: Any, job: Followed) -> None:
    """Take note of ids, pictures and ends."""
    async for line in lines:
        if line.startswith(b"id: "):
            job.ids.append(int(line[4:]))
        elif line.startswith(b"event: ") and b".completed" in line:
            job.pictures.append(job.ids[-1] if job.ids else -1)
        elif line.startswith((b"event: job.succeeded", b"event: error")):
            job.ends.append(line[7:].decode().strip())


async def _object(session: ClientSession, job: str) -> dict[str, Any]:
    while True:
        with suppress(ClientError, ConnectionError):
            async with session.get(f"/v1/jobs/{job}") as answer:
                return dict(await answer.json())
        await asyncio.sleep(0.05)


async def restarts(run: Run) -> None:
    """SIGKILLs of the server, then of its workers, at random moments under mixed traffic."""
    kills, worker_kills = (20, 8) if run.quick else (SERVER_KILLS, WORKER_KILLS)
    with _folder() as folder:
        restarts = Restarts(run, folder)
        async with client(f"http://127.0.0.1:{restarts.port}") as session:
            server = await restarts.start()
            clients = [asyncio.create_task(restarts.traffic(session, number)) for number in range(CLIENTS)]
            starts = []
            for _ in run.rounds(kills):
                await asyncio.sleep(random.uniform(0.0, LONGEST))
                server.http.send_signal(signal.SIGKILL)
                server.stop()
                began = now()
                server = await restarts.start()
                await _object(session, "any")
                starts.append(now() - began)
            killed = await _kill_workers(run, server, restarts, worker_kills)
            restarts.closing = True
            await asyncio.wait(clients, timeout=10 * DEADLINE)
            for job in [job for job in restarts.jobs if not job.ends]:
                run.say(f"{job.id} has no end here, the server: {(await _object(session, job.id))['status']}")
            await _judge(run, session, restarts, kills + killed)
            run.tell("killed, to the first answer of the next server", "s", starts)
            server.stop()


async def _kill_workers(run: Run, server: Server, restarts: Restarts, count: int) -> int:
    """One after the other, each when a job has ended since the last: a job survives two."""
    for _ in run.rounds(count):
        ended = sum(bool(job.ends) for job in restarts.jobs)
        await asyncio.sleep(random.uniform(0.0, LONGEST / 3))
        with suppress(StopIteration, psutil.Error):
            server.worker().kill()
        deadline = now() + DEADLINE
        while now() < deadline:
            await asyncio.sleep(0.02)
            if sum(bool(job.ends) for job in restarts.jobs) > ended:
                break
    return count


async def _judge(run: Run, session: ClientSession, restarts: Restarts, kills: int) -> None:
    jobs, unreadable = restarts.jobs, 0
    for job in jobs:
        for address in job.made.values():
            async with session.get(address) as answer:
                unreadable += answer.status != 200 or not await answer.read()
    ends = Counter(tuple(job.ends) for job in jobs)
    run.say(
        f"{kills} kills, {len(jobs)} jobs, {sum(len(job.made) for job in jobs)} pictures; ends: {dict(ends)}"
    )
    run.tell("jobs that did not end well, and once", "", [len(jobs) - ends[("job.succeeded",)]], most=0)
    run.tell("finished pictures that cannot be read", "", [unreadable], most=0)
    again = sum(job.ids != sorted(set(job.ids)) for job in jobs)
    run.tell("jobs whose event ids came twice or fell", "", [again], most=0)
    twice = sum(len(job.pictures) != len(job.made) for job in jobs)
    run.tell("jobs with pictures that came twice, or not", "", [twice], most=0)
    split = sum(len(found) > 1 for found in restarts.keys.values())
    run.tell("Idempotency-Keys with more than one job", "", [split], most=0)


# -- costs --------------------------------------------------------------------------------------------


async def journal(run: Run) -> None:
    """What a stored job costs: to accept alone and with many, to drain, CPU of the front, memory at rest."""
    await _accepting(run)
    waiting = WAITING // 10 if run.quick else WAITING
    flags = ("--backend", "scripts.bench.restarts:InstantBackend", "--max-queue", str(waiting + IN_FLIGHT))
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    idle: dict[bool, float] = {}
    for stored in (False, True):
        with _folder() as folder:
            kept = ("--state-dir", str(folder), "--no-ephemeral") if stored else ()
            async with _serving(run, (*flags, *kept)) as (server, session):
                idle[stored] = rss(server.http)
                await _costs(run, server, session, waiting, "stored" if stored else "ephemeral", stored)
    run.tell("memory at rest, stored - ephemeral", "MB", [idle[True] - idle[False]], most=10)


async def _accepting(run: Run) -> None:
    """The journal alone: how long a ticket takes to be on the disk."""
    catalog, default = choose_models(run.settings)
    request, _ = parse_request(SMALL)
    plan = make_plan(request, catalog.get(default), run.settings, "generation", [])
    with _folder() as folder:
        opened = Journal(folder / "journal.sqlite")
        opened.open()
        ledger = Ledger(opened, Spool(folder / "spool"))
        await ledger.past()

        async def accept() -> float:
            return 1000 * await seconds(ledger.accept(Job(plan), request, None))

        alone = [await accept() for _ in run.rounds(200)]
        run.tell("ticket alone, p95", "ms", [float(np.percentile(alone, 95))], most=15)
        numbers = iter(range(2000))

        async def many() -> None:
            for _ in numbers:
                await accept()

        took = await seconds(asyncio.gather(*(many() for _ in range(IN_FLIGHT))))
        run.tell(f"ticket, {IN_FLIGHT} in flight, each", "ms", [took / 2], most=1)
        await ledger.close()


async def _costs(
    run: Run, server: Server, session: ClientSession, waiting: int, name: str, bounded: bool
) -> None:
    alone = [await _post(session) for _ in run.rounds(100)]
    run.tell(
        f"{name}: accepted over HTTP alone, p95",
        "ms",
        [float(np.percentile(alone, 95))],
        15 if bounded else None,
    )
    before, began = _cpu(server), now()
    numbers = iter(range(waiting))
    await asyncio.gather(*(_post_all(session, numbers) for _ in range(IN_FLIGHT)))
    each = 1000 * (now() - began) / waiting
    run.tell(f"{name}: accepted over HTTP, {IN_FLIGHT} in flight, each", "ms", [each])
    quarters = [now()]
    for left in (0.75, 0.5, 0.25, 0.0):
        quarters.append(await _when_left(session, left * waiting))
    spent = [later - sooner for sooner, later in itertools.pairwise(quarters)]
    run.tell(f"{name}: {waiting} jobs done, since the first was accepted", "s", [quarters[-1] - began])
    run.say(f"{name}: seconds for each quarter of the queue: {', '.join(f'{each:.1f}' for each in spent)}")
    run.tell(
        f"{name}: CPU of the front a job",
        "ms",
        [1000 * (_cpu(server) - before) / waiting],
        20 if bounded else None,
    )


async def _post(session: ClientSession) -> float:
    began = now()
    async with session.post(GENERATIONS, json=SMALL, headers=ASYNC) as answer:
        assert answer.status == 202, await answer.text()
    return 1000 * (now() - began)


async def _post_all(session: ClientSession, numbers: Iterator[int]) -> None:
    for _ in numbers:
        await _post(session)


async def _when_left(session: ClientSession, most: float) -> float:
    """When no more than so many jobs wait."""
    while True:
        async with session.get("/metrics") as answer:
            found = re.search(r"^imagegen_queue_depth (\S+)", await answer.text(), re.MULTILINE)
        if found is None or float(found[1]) <= most:
            return now()
        await asyncio.sleep(0.2)


def _cpu(server: Server) -> float:
    times = server.http.cpu_times()
    return times.user + times.system


@asynccontextmanager
async def _serving(run: Run, flags: tuple[str, ...]) -> AsyncIterator[tuple[Server, ClientSession]]:
    server = Server(run.settings, MODEL, flags)
    try:
        async with client(await asyncio.wait_for(listening(server), DEADLINE)) as session:
            await asyncio.wait_for(loaded(session), DEADLINE)
            yield server, session
    finally:
        server.stop()


@contextmanager
def _folder() -> Iterator[Path]:
    """A state folder on a disk, which the temporary folder may not be."""
    folder = Path(tempfile.mkdtemp(prefix="gguf-imagegen-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
