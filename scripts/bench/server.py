"""Servers to measure: in a process of their own as users run them, or within this one to look inside."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector, web

from gguf_imagegen.api.app import make_app
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.events import EngineEvent
from scripts.bench.figures import Run

MODEL = "tiny-random"
GENERATIONS = "/v1/images/generations"
PICTURE = {"prompt": "a lighthouse at dusk", "seed": 1, "size": "128x128", "steps": 20}
SMALL = {**PICTURE, "size": "64x64", "steps": 1}
MOST_STEPS = 150
LONG = {**PICTURE, "size": "256x256", "steps": MOST_STEPS}
DEADLINE = 60.0
ENVIRONMENT = {"COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parent)}
"""Of servers: wide lines in the log, and backends that stand here."""
now = time.perf_counter


class Server:
    """`gguf-imagegen serve` in a process of its own, on a free port; `model` is an id or a file.

    `flags` come last and win.
    """

    def __init__(self, settings: Settings, model: str = MODEL, flags: Sequence[str] = ()) -> None:
        self._log = settings.models_dir / f"serve-{time.monotonic_ns()}.log"
        command = [
            sys.executable, "-m", "gguf_imagegen", "serve", "--port", "0", "--grace", "0", "--model", model,
            "--models-dir", str(settings.models_dir), "--threads", str(settings.threads),
            "--ephemeral", *flags,
        ]  # fmt: skip
        self.began = now()
        with self._log.open("w") as stderr:
            self._process = subprocess.Popen(command, stderr=stderr, env={**os.environ, **ENVIRONMENT})
        self.http = psutil.Process(self._process.pid)

    def url(self) -> str | None:
        """Where it listens, once it does."""
        match = re.search(r"(http://\S+)/v1", self._log.read_text())
        if match is None and self._process.poll() is not None:
            raise RuntimeError(f"the server did not start: {self._log.read_text()}")
        return match and match[1]

    def worker(self) -> psutil.Process:
        return next(
            each for each in self.http.children() if "gguf_imagegen.engines.sdcpp.worker" in each.cmdline()
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)


@asynccontextmanager
async def starting(
    run: Run, model: str = MODEL, flags: Sequence[str] = ()
) -> AsyncIterator[tuple[Server, ClientSession]]:
    """A server that listens, its model perhaps not loaded yet, and a client of it."""
    server = Server(run.settings, model, flags)
    try:
        url = await asyncio.wait_for(listening(server), DEADLINE)
        async with client(url) as session:
            yield server, session
    finally:
        server.stop()


@asynccontextmanager
async def serving(
    run: Run, model: str = MODEL, flags: Sequence[str] = ()
) -> AsyncIterator[tuple[Server, ClientSession]]:
    """A server with its model loaded, and a client of it."""
    async with starting(run, model, flags) as (server, session):
        await asyncio.wait_for(loaded(session), DEADLINE)
        yield server, session


class Instead(SdCpp):
    """The devices of stable-diffusion.cpp, with other engines."""

    def __init__(self, settings: Settings, make: Callable[[], Engine]) -> None:
        super().__init__(settings)
        self._make = make

    def engine(self, device: Device) -> Engine:
        return self._make()


@asynccontextmanager
async def hosting(run: Run, engine: EngineProcess) -> AsyncIterator[ClientSession]:
    """A client of a server within this process, where the engine can be watched."""
    catalog, default = choose_models(run.settings)
    async with reaching(
        make_app(run.settings, catalog, default, Instead(run.settings, lambda: engine))
    ) as session:
        yield session


@asynccontextmanager
async def reaching(app: web.Application) -> AsyncIterator[ClientSession]:
    """A client of this app, its default model loaded."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with client(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            await asyncio.wait_for(loaded(session), DEADLINE)
            yield session
    finally:
        await runner.cleanup()


def client(url: str) -> ClientSession:
    return ClientSession(
        url, connector=TCPConnector(limit=0), timeout=ClientTimeout(total=None), read_bufsize=1 << 22
    )


async def listening(server: Server) -> str:
    while True:
        if url := server.url():
            return url
        await asyncio.sleep(0.005)


async def loaded(session: ClientSession) -> None:
    while True:
        async with session.get("/health") as answer:
            if (await answer.json())["loaded"]:
                return
        await asyncio.sleep(0.005)


async def make(session: ClientSession, body: dict[str, Any], response_format: str = "b64_json") -> None:
    """A whole request, not streamed."""
    async with session.post(GENERATIONS, json={**body, "response_format": response_format}) as answer:
        await answer.read()
        answer.raise_for_status()


def stream(body: dict[str, Any], dialect: str = "llama-box") -> dict[str, Any]:
    return {**body, "stream": True, "stream_options": {"dialect": dialect}}


async def frames(answer: ClientResponse) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """The items of all frames, and when each was there to be read."""
    async for line in answer.content:
        at = now()
        if line.startswith(b"data: {"):
            for item in json.loads(line[6:])["data"]:
                yield at, item


async def seconds(work: Awaitable[object]) -> float:
    began = now()
    await work
    return now() - began


async def exhaust(iterator: AsyncIterator[EngineEvent]) -> None:
    async for _ in iterator:
        pass


def rss(process: psutil.Process) -> float:
    """Resident megabytes."""
    return float(process.memory_info().rss) / 1e6


def megabytes(*files: Path) -> float:
    return sum(file.stat().st_size for file in files) / 1e6
