"""The server's own place in the cluster: a node of Ray on this machine, and the bridge to all others."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from gguf_imagegen.engines import wire
from gguf_imagegen.engines.process import with_package
from gguf_imagegen.pool.ray import messages, nodes
from gguf_imagegen.pool.ray.messages import Joined, Report, Wish
from gguf_imagegen.pool.ray.nodes import ClusterFailed, RayNode
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)

BRIDGE: Final = (sys.executable, "-c", "from gguf_imagegen.pool.ray.bridge import main; main()")
"""Run in the root folder: Ray has workers import from a driver's own folder first."""
CONNECTING: Final = 60.0
"""Seconds within which the bridge must be in: with a wrong token it never is, and never says so."""
ENDING: Final = 5.0


class Driver:
    """Starts what is missing here, and speaks with the bridge; `take` gets each report, in order."""

    def __init__(self, settings: Settings, state: Path | None, take: Callable[[Report], None]) -> None:
        self.address = ""
        """The cluster's, once it is known."""
        self._settings = settings
        self._state = state
        self._take = take
        self._node: RayNode | None = None
        self._bridge: Process | None = None
        self._wishes: list[Wish] = []
        self._said: deque[str] = deque(maxlen=20)

    async def run(self) -> str:
        """Until the connection ends; why. Raises ClusterFailed if there is none."""
        nodes.require_ray()
        wanted = self._settings.cluster or ""
        head = wanted.partition(":")[0] == "auto" and not os.environ.get("RAY_ADDRESS")
        token = nodes.token_of(self._settings, self._state if head else None)
        nodes.require_token(token, self._settings)
        environment = nodes.environment(token)
        try:
            await self._be_a_node(wanted, environment, head=head)
            return await self._first_end(environment)
        finally:
            await self.stop()

    def send(self, wish: Wish) -> None:
        """What is sent in one go of the event loop leaves together."""
        if not self._wishes:
            asyncio.get_running_loop().call_soon(self._flush)
        self._wishes.append(wish)

    async def stop(self) -> None:
        bridge, self._bridge = self._bridge, None
        if bridge is not None:
            with contextlib.suppress(ProcessLookupError):
                bridge.kill()
            await _emptied(bridge)
        node, self._node = self._node, None
        if node is not None:
            await node.stop()

    def _flush(self) -> None:
        wishes, self._wishes = self._wishes, []
        if self._bridge is not None and self._bridge.stdin is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                self._bridge.stdin.write(messages.framed(wishes))

    async def _be_a_node(self, wanted: str, environment: Mapping[str, str], *, head: bool) -> None:
        """A driver needs one of Ray's nodes on its own machine; one without devices does."""
        if head:
            self.address = nodes.head_address(wanted)
            head = not await nodes.answers(self.address)
        else:
            self.address = nodes.checked_address(
                os.environ["RAY_ADDRESS"] if wanted.startswith("auto") else wanted
            )
            if not await nodes.answers(self.address):
                raise ClusterFailed(f"nothing answers at {self.address}, the head of the cluster")
        if head or not await asyncio.to_thread(nodes.is_here, self.address):
            ports = nodes.ports_of(self._settings)
            node = RayNode(self.address, environment, head=head, extra=ports)
            await node.start()
            self._node = node

    async def _first_end(self, environment: Mapping[str, str]) -> str:
        """Why the bridge ended, or Ray's processes here, without which it waits for ever and says nothing."""
        tasks = [asyncio.create_task(self._follow(environment))]
        if self._node is not None:
            tasks.append(asyncio.create_task(self._node.wait()))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                return tasks[0].result()
            return "Ray's processes on this machine ended"
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, environment: Mapping[str, str]) -> str:
        self._bridge = bridge = await asyncio.create_subprocess_exec(
            *BRIDGE, self.address, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd="/",
            env=with_package(environment), limit=1 << 20,
        )  # fmt: skip
        log_reader = asyncio.create_task(self._read_log(bridge))
        try:
            await self._first_report(bridge)
            assert bridge.stdout is not None
            while True:
                for report in await _reports(bridge.stdout):
                    self._take(report)
        except asyncio.IncompleteReadError:
            await asyncio.wait((log_reader,), timeout=ENDING)
            return (
                f"the bridge to the cluster ended: {self._said[-1] if self._said else 'no reason was given'}"
            )
        finally:
            log_reader.cancel()

    async def _first_report(self, bridge: Process) -> None:
        assert bridge.stdout is not None
        try:
            reports = await asyncio.wait_for(_reports(bridge.stdout), CONNECTING)
        except asyncio.TimeoutError:
            raise ClusterFailed(
                f"{self.address} does not let this server in within {CONNECTING:g} s: most likely its token"
                " is another one (--cluster-token), or Ray or Python there has another version"
            ) from None
        assert isinstance(reports[0], Joined)
        for report in reports:
            self._take(report)

    async def _read_log(self, bridge: Process) -> None:
        assert bridge.stderr is not None
        while line := await bridge.stderr.readline():
            words = line.decode(errors="replace").strip()
            if words and "(+0x" not in words:  # a frame of a trace says nothing to anybody
                self._said.append(words[:300])
                log.debug("bridge: %s", words)


async def _emptied(process: Process) -> None:
    """Wait for its end, and read its pipes to theirs: their transports would stay open."""
    assert process.stdout is not None
    assert process.stderr is not None
    for stream in (process.stdout, process.stderr):
        with contextlib.suppress(asyncio.TimeoutError, RuntimeError):
            await asyncio.wait_for(stream.read(), ENDING)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(process.wait(), ENDING)


async def _reports(stdout: asyncio.StreamReader) -> list[Report]:
    length = wire.decode_prefix(await stdout.readexactly(wire.PREFIX.size))
    return messages.reports_of(await stdout.readexactly(length))
