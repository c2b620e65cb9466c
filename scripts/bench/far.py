"""A cluster on this machine: a head, a server without lanes of its own, and nodes whose engines only wait."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
from aiohttp import ClientSession

from gguf_imagegen.pool.ray import nodes
from gguf_imagegen.pool.ray.nodes import RayNode
from scripts.bench.figures import Run
from scripts.bench.server import DEADLINE, ENVIRONMENT, MODEL, Server, client, listening

BACKEND = ("--backend", "sleeping_backend:Sleeping", "--devices", "cpu")
OTHER = "other-random"
"""A second model; engines that wait do not look into its file."""
CATALOG = f"""
version: 1
models:
  {OTHER}:
    description: The same file by another name.
    family: ovis-image
    files: {{model: {MODEL}.gguf, taesd: {MODEL}-tae.gguf}}
    licence: MIT
    defaults: {{size: 128x128, steps: 20}}
"""
ANN, BOB = "ann-0123456789", "bob-0123456789"
"""Keys of two callers."""
CALLERS = f"[{{name: ann, key: {ANN}, admin: true}}, {{name: bob, key: {BOB}}}]"
STARTING = 600.0
SMALL = "--object-store-memory=100000000"
QUEUE = 400


class Far:
    """As an async context; `grow` adds nodes, `ann` and `bob` are clients of the server."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._folder = run.settings.models_dir
        self._token = secrets.token_hex(32)
        self._address = f"{nodes.own_address()}:{free_port()}"
        self._head = RayNode(self._address, nodes.environment(self._token), head=True, extra=[SMALL])
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._open = contextlib.AsyncExitStack()
        self.lanes = 0

    async def __aenter__(self) -> Far:
        async with contextlib.AsyncExitStack() as stack:
            await self._head.start()
            stack.push_async_callback(self._head.stop)
            stack.callback(self._end_nodes)
            self.server = Server(self._run.settings, flags=self._flags())
            stack.callback(self.server.stop)
            url = await asyncio.wait_for(listening(self.server), DEADLINE)
            self.ann = await stack.enter_async_context(as_caller(url, ANN))
            self.bob = await stack.enter_async_context(as_caller(url, BOB))
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def grow(self, count: int) -> None:
        """To so many lanes, the further ones on a node of their own."""
        flags = (
            "--head", self._address, "--cluster-token", self._token, "--name", f"node-{count}",
            "--cpu-lanes", str(count - self.lanes), "--grace", "0", "--ray", SMALL,
            "--models-dir", str(self._folder), *BACKEND,
        )  # fmt: skip
        command = [sys.executable, "-m", "gguf_imagegen", "node", *flags]
        self._nodes.append(started(command, self._folder / f"node-{count}.log"))
        self.lanes = count
        await asyncio.wait_for(self._all_there(), STARTING)

    @property
    def bridge(self) -> psutil.Process:
        """The process that runs Ray's code for the server."""
        children = self.server.http.children()
        return next(each for each in children if "pool.ray.bridge" in " ".join(each.cmdline()))

    async def health(self) -> dict[str, Any]:
        async with self.ann.get("/health") as answer:
            found: dict[str, Any] = await answer.json()
            return found

    async def _all_there(self) -> None:
        while True:
            if len((await self.health())["lanes"]) == self.lanes:
                return
            await asyncio.sleep(0.5)

    def _flags(self) -> tuple[str, ...]:
        callers, catalog = self._folder / "callers.yaml", self._folder / "other.yaml"
        callers.write_text(CALLERS)
        callers.chmod(0o600)
        catalog.write_text(CATALOG)
        return (
            "--cluster", self._address, "--cluster-token", self._token, "--devices", "none",
            "--max-queue", str(QUEUE), "--callers", str(callers), "--catalog", str(catalog),
        )  # fmt: skip

    def _end_nodes(self) -> None:
        for node in self._nodes:
            node.terminate()
        for node in self._nodes:
            try:
                node.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                node.kill()


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stderr:
        return subprocess.Popen(command, stderr=stderr, env={**os.environ, **ENVIRONMENT})


def as_caller(url: str, key: str) -> ClientSession:
    session = client(url)
    session.headers["Authorization"] = f"Bearer {key}"
    return session


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])
