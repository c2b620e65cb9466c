"""A node of a cluster: Ray's processes on this machine, offering its devices, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import socket
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from gguf_imagegen.engines.backend import UnknownBackend
from gguf_imagegen.machine import logs, signals
from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.pool.ray.node_settings import LEAVING, variables
from gguf_imagegen.pool.ray.nodes import ClusterFailed, RayNode
from gguf_imagegen.pool.ray.offer import offer_of
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)

AGAIN: Final = 5.0
"""Seconds until a node whose processes ended, or whose head is away, tries again."""
LOOK: Final = 0.5


def run_node(settings: Settings, head: str, name: str | None, *, pull: bool, ray_flags: Sequence[str]) -> int:
    """Until SIGTERM or SIGINT: then jobs here may end for `grace` seconds, and new ones go elsewhere."""
    logs.set_up(settings.log_level)
    console = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="gguf-imagegen-node-"))
    try:
        nodes.require_ray()
        token = nodes.token_of(settings)
        nodes.require_token(token, settings)
        devices = offer_of(settings).devices
        named = name or socket.gethostname()
        environment = {
            **nodes.environment(token), **variables(settings, named, folder, pulls=pull),
        }  # fmt: skip
        flags = [*nodes.ports_of(settings), *ray_flags]
        node = RayNode(nodes.checked_address(head), environment, lanes=len(devices), extra=flags)
        console.print(f"node {named} offers {', '.join(each.name for each in devices)}", highlight=False)
        return asyncio.run(_supervise(node, folder, settings.grace, console))
    except UnknownBackend as exc:
        console.print(f"gguf-imagegen: {exc}", style="red", soft_wrap=True)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _supervise(node: RayNode, folder: Path, grace: float, console: Console) -> int:
    """The first attempt must succeed; later ones wait for a head that is away."""
    stop, joined = asyncio.Event(), False
    signals.on_stop(stop.set)
    while not stop.is_set():
        try:
            await _unless(stop, node.start())
        except ClusterFailed as exc:
            if not joined:
                raise
            log.warning("%s; trying again in %g s", exc.message, AGAIN)
        else:
            if not stop.is_set():
                joined = True
                console.print(f"  joined the cluster at {node.address}", highlight=False)
                await _unless(stop, node.wait())
        if not stop.is_set():
            log.warning("this node is not in the cluster; joining again in %g s", AGAIN)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), AGAIN)
    await _leave(folder, grace)
    await node.stop()
    return 0


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, object]) -> None:
    """Wait for this, but not once we are told to stop."""
    working = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working
    finally:
        working.cancel()
        stopped.cancel()


async def _leave(folder: Path, grace: float) -> None:
    """Lanes here get no more work, and end when they have done what they do."""
    (folder / LEAVING).touch()
    deadline = asyncio.get_running_loop().time() + grace
    while _lanes(folder) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110  # other processes
        await asyncio.sleep(LOOK)


def _lanes(folder: Path) -> list[int]:
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    return [number for number in numbers if psutil.pid_exists(number)]
