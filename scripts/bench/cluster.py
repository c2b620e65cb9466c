"""A cluster on this machine whose engines only wait: how its front keeps up with 1 to 64 lanes."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec

from aiohttp import ClientSession

from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.pool.ray.nodes import RayNode
from scripts.bench.figures import Run, Unavailable
from scripts.bench.lanes import at_once
from scripts.bench.server import DEADLINE, ENVIRONMENT, PICTURE, Server, client, listening, make, now, seconds

LANES = (1, 2, 4, 16, 64)
STEPS = 5
TURNS = 3
BODY: dict[str, object] = {**PICTURE, "size": "64x64", "steps": STEPS}
MANY: dict[str, object] = {**PICTURE, "size": "64x64", "steps": 150}
"""Steps that take no time: their events are what it costs."""
STARTING = 600.0
SMALL = "--object-store-memory=100000000"
BACKEND = ("--backend", "sleeping_backend:Sleeping", "--devices", "cpu")


async def cluster(run: Run) -> None:
    """Throughput as a part of what so many lanes could do, and the front's own CPU for each event."""
    if find_spec("ray") is None:
        raise Unavailable("needs Ray: pip install 'gguf-imagegen[cluster]'")
    here = await alone(run)
    for count in LANES:
        async with far_lanes(run, count) as (server, session):
            await at_once(session, count, BODY)  # each lane loads
            before, began = server.http.cpu_times(), now()
            for _ in run.rounds(TURNS):
                await at_once(session, count, BODY)
            took, after = now() - began, server.http.cpu_times()
            run.tell(f"{count} lanes of a node, part of the best", "", [TURNS * STEPS / took], fewest=0.9)
            used = after.user + after.system - before.user - before.system
            events = TURNS * count * (STEPS + 3)
            run.tell(f"{count} lanes of a node, front's CPU for an event", "ms", [1000 * used / events])
            if count == 1:
                await against(run, session, server, here)


async def against(run: Run, session: ClientSession, server: Server, here: float) -> None:
    """What distance adds to a request of many steps, and the front's CPU where events come in batches."""
    before = server.http.cpu_times()
    times = [await seconds(make(session, MANY)) for _ in run.rounds(run.repeats)]
    after = server.http.cpu_times()
    used = after.user + after.system - before.user - before.system
    run.tell("150 steps in a row, front's CPU for an event", "ms", [1000 * used / len(times) / 153], most=0.5)
    run.tell("150 steps in a row, a node ÷ a lane here", "", [statistics.median(times) / here])


async def alone(run: Run) -> float:
    """Seconds of the same request on a lane of the server itself."""
    server = Server(run.settings, flags=BACKEND)
    try:
        url = await asyncio.wait_for(listening(server), DEADLINE)
        async with client(url) as session:
            await make(session, MANY)
            return statistics.median([await seconds(make(session, MANY)) for _ in run.rounds(run.repeats)])
    finally:
        server.stop()


@asynccontextmanager
async def far_lanes(run: Run, count: int) -> AsyncIterator[tuple[Server, ClientSession]]:
    """A server without lanes of its own, in a cluster with one node that has so many."""
    token, address = secrets.token_hex(32), f"{nodes.own_address()}:{free_port()}"
    head = RayNode(address, nodes.environment(token), head=True, extra=[SMALL])
    await head.start()
    node = offering(run, address, token, count)
    flags = (
        "--cluster",
        address,
        "--cluster-token",
        token,
        "--devices",
        "none",
        "--max-queue",
        str(4 * count),
    )
    server = Server(run.settings, flags=flags)
    try:
        url = await asyncio.wait_for(listening(server), DEADLINE)
        async with client(url) as session:
            await asyncio.wait_for(all_there(session, count), STARTING)
            yield server, session
    finally:
        server.stop()
        node.terminate()
        node.wait(DEADLINE)
        await head.stop()


def offering(run: Run, address: str, token: str, count: int) -> subprocess.Popen[bytes]:
    flags: Sequence[str] = (
        "--head", address, "--cluster-token", token, "--cpu-lanes", str(count), "--grace", "0",
        "--ray", SMALL, "--models-dir", str(run.settings.models_dir), *BACKEND,
    )  # fmt: skip
    command = [sys.executable, "-m", "gguf_imagegen", "node", *flags]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT})


async def all_there(session: ClientSession, count: int) -> None:
    while True:
        async with session.get("/health") as answer:
            if len((await answer.json())["lanes"]) == count:
                return
        await asyncio.sleep(0.5)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])
