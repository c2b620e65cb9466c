"""The driver of Ray, in a process of its own that speaks frames: the one module that imports Ray.

A driver may be ended by Ray at any time, so the server must not be one. This finds nodes that offer
devices, makes an actor for each device, and passes orders and batches on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gguf_imagegen.engines import wire
from gguf_imagegen.machine.processes import die_with_parent
from gguf_imagegen.pool.ray import messages
from gguf_imagegen.pool.ray.actor import EngineActor
from gguf_imagegen.pool.ray.messages import (
    Away,
    Drop,
    FromLane,
    Joined,
    LaneDown,
    LaneUp,
    NodeGone,
    NodeSeen,
    Release,
    Report,
    ToLane,
    Wish,
)
from gguf_imagegen.pool.ray.nodes import LANE
from gguf_imagegen.pool.ray.offer import offer, read_offer

LOOK: Final = 1.0
"""Seconds between two looks at the list of nodes."""
PATIENCE: Final = 5.0
"""Seconds after which a head that does not answer counts as away."""
STARTING: Final = 300.0
"""Seconds within which a node must have started a process for a lane, or said what it offers."""
AGAIN: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
TOGETHER: Final = 0.02
"""Seconds within which reports leave in one frame; the first after a silence leaves at once."""

Result = TypeVar("Result")


@dataclass
class Node:
    """One that offers devices; `leaving`: it gets no lanes any more."""

    id: str
    host: str
    work: asyncio.Task[None]
    leaving: bool = False
    lanes: set[str] = field(default_factory=set)


class Bridge:
    """Makes lanes wherever devices are, until told otherwise."""

    def __init__(self, address: str, send: Callable[[Report], None]) -> None:
        self._address = address
        self._send = send
        self._nodes: dict[str, Node] = {}
        self._actors: dict[str, Any] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._asking = ThreadPoolExecutor(4)
        self._away = False
        self._make: Any = ray.remote(num_cpus=0, resources={LANE: 1}, max_restarts=0, max_task_retries=0)(
            EngineActor
        )
        self._offer: Any = ray.remote(num_cpus=0, max_retries=0)(offer)
        self._aside: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Follow the list of nodes for ever. Nothing else here waits for the head."""
        asked: asyncio.Future[list[dict[str, Any]]] | None = None
        self._send(Joined(self._address))
        while True:
            asked = asked or asyncio.get_running_loop().run_in_executor(self._asking, ray.nodes)
            done, _ = await asyncio.wait((asked,), timeout=PATIENCE)
            if not done:
                self._tell_away(f"the head of the cluster has not answered for {PATIENCE:g} s")
                continue
            try:
                self._update(asked.result())
            except Exception as exc:  # whatever Ray raises without its head
                self._tell_away(f"the head of the cluster does not answer ({type(exc).__name__})")
            asked = None
            await asyncio.sleep(LOOK)

    def take(self, wish: Wish) -> None:
        match wish:
            case ToLane():
                if actor := self._actors.get(wish.lane):
                    actor.tell.remote(wish.order)
            case Drop():
                if reader := self._readers.get(wish.lane):
                    reader.cancel()
            case Release():
                if node := self._nodes.get(wish.node):
                    node.leaving = True
                    for lane in node.lanes:
                        self._readers[lane].cancel()

    def _tell_away(self, why: str) -> None:
        if not self._away:
            self._away = True
            self._send(Away(why))

    def _update(self, found: list[dict[str, Any]]) -> None:
        if self._away:
            self._away = False
            self._send(Joined(self._address))
        alive = {each["NodeID"]: each for each in found if each["Alive"] and each["Resources"].get(LANE)}
        for id, each in alive.items():
            if id not in self._nodes:
                node = Node(id, each["NodeManagerHostname"], work=None)  # type: ignore[arg-type]
                node.work = asyncio.create_task(self._serve(node))
                self._nodes[id] = node
        for id in self._nodes.keys() - alive.keys():
            node = self._nodes.pop(id)
            node.leaving = True
            node.work.cancel()
            self._send(NodeGone(id, "its node left the cluster"))

    async def _serve(self, node: Node) -> None:
        """A lane for each device of the node, made again when it ends."""
        tries = 0
        while not node.leaving:
            try:
                data = await self._ask(node)
                devices = len(read_offer(data).devices)
            except Exception as exc:  # whatever Ray raises, and what is wrong with the node
                why = str(exc) if isinstance(exc, ValueError) else _words(exc)
                self._send(NodeSeen(node.id, node.host, b"", why))
                await asyncio.sleep(AGAIN[min(tries, len(AGAIN) - 1)])
                tries += 1
                continue
            self._send(NodeSeen(node.id, node.host, data))
            await asyncio.gather(*(self._keep(node, device) for device in range(devices)))

    async def _ask(self, node: Node) -> bytes:
        asked = self._offer.options(scheduling_strategy=_on(node)).remote()
        data = await asyncio.wait_for(_result(asked), STARTING)
        assert isinstance(data, bytes)
        return data

    async def _keep(self, node: Node, device: int) -> None:
        """A lane on this device for as long as the node is there; each has a name of its own."""
        number = tries = 0
        while not node.leaving:
            number += 1
            lane, began = f"{node.id[:16]}/{device}/{number}", time.monotonic()
            reader = self._readers[lane] = asyncio.create_task(self._read(node, device, lane))
            node.lanes.add(lane)
            try:
                await asyncio.wait((reader,))
            finally:
                reader.cancel()
                node.lanes.discard(lane)
                del self._readers[lane]
                self._actors.pop(lane, None)
            why = "it was given up" if reader.cancelled() else _words(reader.exception())
            self._send(LaneDown(lane, why))
            tries = 0 if time.monotonic() - began > STARTING else tries + 1
            await asyncio.sleep(AGAIN[min(tries, len(AGAIN) - 1)])

    async def _read(self, node: Node, device: int, lane: str) -> None:
        """From the start of the actor to its end; it is gone afterwards."""
        actor = self._make.options(scheduling_strategy=_on(node)).remote(device, alone=True)
        try:
            batches = actor.events.options(num_returns="streaming").remote().__aiter__()
            first = await asyncio.wait_for(_next(batches), STARTING)
            self._actors[lane] = actor
            self._send(LaneUp(lane, node.id, device))
            self._send(FromLane(lane, first))
            while True:
                self._send(FromLane(lane, await _next(batches)))
        finally:
            self._aside_in_thread(lambda: ray.kill(actor))

    def _aside_in_thread(self, work: Callable[[], None]) -> None:
        """What may wait for the head."""

        async def do() -> None:
            with suppress(Exception):  # it is gone already, or its node is
                await asyncio.get_running_loop().run_in_executor(self._asking, work)

        task = asyncio.create_task(do())
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def _on(node: Node) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node.id, soft=False)


async def _next(batches: Any) -> bytes:
    """What is here already, as all but large pictures are, is taken without another turn of the loop."""
    made = await batches.__anext__()
    try:
        data = ray.get(made, timeout=0)
    except GetTimeoutError:
        data = await made
    assert isinstance(data, bytes)
    return data


async def _result(made: Awaitable[Result]) -> Result:
    return await made


def _words(error: BaseException | None) -> str:
    """Ray's errors are paragraphs; the kind says most, and the end what the node itself said."""
    if isinstance(error, asyncio.TimeoutError):
        return f"it did not start within {STARTING:g} s"
    name = type(error).__name__
    known = {
        "ActorDiedError": "its actor died",
        "ActorUnavailableError": "its actor cannot be reached",
        "NodeDiedError": "its node died",
        "ActorUnschedulableError": "its node is gone",
        "TaskUnschedulableError": "its node is gone",
        "OutOfMemoryError": "its node ran out of memory",
        "StopAsyncIteration": "its actor ended",
    }
    if name in known:
        return known[name]
    last = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{name}: {last[-1][:200]}" if last else name


class Pipes:
    """The two pipes to the server: wishes come on stdin, reports leave on what was stdout."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._reports: asyncio.Queue[Report] = asyncio.Queue()

    def send(self, report: Report) -> None:
        self._reports.put_nowait(report)

    async def read(self, take: Callable[[Wish], None]) -> None:
        """Until the end of stdin: the server is gone."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        with suppress(asyncio.IncompleteReadError):
            while True:
                length = wire.decode_prefix(await reader.readexactly(wire.PREFIX.size))
                for wish in messages.wishes_of(await reader.readexactly(length)):
                    take(wish)

    async def write(self) -> None:
        """For ever; a full pipe holds up the thread, not the loop."""
        sent = 0.0
        while True:
            batch = [await self._reports.get()]
            rest = sent + TOGETHER - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
            while not self._reports.empty():
                batch.append(self._reports.get_nowait())
            await asyncio.to_thread(self._write, messages.framed(batch))
            sent = time.monotonic()

    def _write(self, frame: bytes) -> None:
        left = memoryview(frame)
        while left:
            left = left[os.write(self._out, left) :]


async def bridge(address: str, pipes: Pipes) -> None:
    made = Bridge(address, pipes.send)
    work = [asyncio.create_task(each) for each in (pipes.read(made.take), pipes.write(), made.run())]
    done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def main() -> None:
    """The whole process, for the address that is its argument (`pool.ray.driver`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    pipes = Pipes()
    address = sys.argv[1]
    ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    asyncio.run(bridge(address, pipes))
    os._exit(0)  # ray.shutdown may wait for a head that is gone
