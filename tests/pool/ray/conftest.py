"""A cluster on this machine, as small as Ray can be, and a server that uses it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

import gguf_imagegen
from gguf_imagegen.pool.ray import messages, nodes
from gguf_imagegen.pool.ray.nodes import RayNode
from gguf_imagegen.vocabulary.waits import Waits
from tests.conftest import App, ServerProcess, runner_of

PATIENCE = 240.0
"""Seconds; on a core that others use, Ray has taken more than 120 to be back."""
SMALL = "--object-store-memory=80000000"
ROOT = Path(__file__).parents[3]
WAITS = Waits(cluster_again=0.5)


async def until(look: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """What this finds, once it finds something."""
    deadline = time.monotonic() + patience
    while True:
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def clock() -> AsyncIterator[Callable[[], float]]:
    """Seconds since the start, but for the time by which a busy machine held up this process at once."""
    began, late = time.monotonic(), 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            at = time.monotonic()
            await asyncio.sleep(0.05)
            late = max(late, time.monotonic() - at - 0.05)

    ticking = asyncio.create_task(tick())
    try:
        yield lambda: time.monotonic() - began - late
    finally:
        ticking.cancel()


def importing(folder: Path) -> dict[str, str]:
    """Variables with which the package of this folder is run, and our tests can be imported."""
    paths = [str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def speaking(version: int, folder: Path) -> Path:
    """A folder with our package, as it would be with another version of the cluster's protocol."""
    package = Path(gguf_imagegen.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "model_catalog.yaml", folder)
    module = folder / package.name / "pool" / "ray" / "messages.py"
    ours = f"WIRE: Final = {messages.WIRE}\n"
    assert ours in module.read_text()
    module.write_text(module.read_text().replace(ours, f"WIRE: Final = {version}\n"))
    return folder


class NodeProcess:
    """`gguf-imagegen node` as a user runs it."""

    def __init__(self, command: list[str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=cwd,
            env={**os.environ, **importing(cwd), "COLUMNS": "200"},
        )  # fmt: skip

    @property
    def family(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def named(self, word: str) -> list[psutil.Process]:
        """Its processes with this word in their command lines."""
        found = []
        for each in self.family:
            with contextlib.suppress(psutil.Error):
                if word in " ".join(each.cmdline()):
                    found.append(each)
        return found

    @property
    def actors(self) -> list[psutil.Process]:
        return self.named("ray::EngineActor")

    @property
    def raylet(self) -> psutil.Process:
        return next(each for each in self.family if each.name() == "raylet")

    def end(self) -> None:
        family = self.family
        self.process.kill()
        for each in family:
            with contextlib.suppress(psutil.Error):
                each.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


class Cluster:
    """A head without devices, and as many nodes as a test starts."""

    def __init__(self, model_dir: Path) -> None:
        self.token = secrets.token_hex(32)
        self.folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # sockets need short paths
        with socket.socket() as sock:
            sock.bind(("", 0))
            port = sock.getsockname()[1]
        self.address = f"{nodes.own_address()}:{port}"
        self.model_dir = model_dir
        self.nodes: dict[str, NodeProcess] = {}
        self.head: RayNode | None = None

    async def start(self) -> None:
        environment = {**nodes.environment(self.token), "RAY_TMPDIR": str(self.folder)}
        self.head = RayNode(self.address, environment, head=True, extra=[SMALL])
        await self.head.start()

    async def stop(self) -> None:
        for node in self.nodes.values():
            node.end()
        if self.head is not None:
            await self.head.stop()
        for left in left_of(str(self.folder)):
            left.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def node(self, name: str, *flags: str, cwd: Path = ROOT, **given: str) -> NodeProcess:
        """A node whose engines are fake, unless another `backend` is given; it runs the package of `cwd`."""
        values = {
            "head": self.address, "name": name, "cluster_token": self.token,
            "models_dir": str(self.model_dir), "threads": "1", "ray": SMALL, "devices": "cpu",
            "backend": "tests.far_engines:Slows", **given,
        }  # fmt: skip
        options = [part for key, value in values.items() for part in (f"--{key.replace('_', '-')}", value)]
        command = [sys.executable, "-m", "gguf_imagegen", "node", *options, *flags]
        made = NodeProcess(command, cwd)
        self.nodes[name] = made
        return made

    def serve(self, folder: Path, *flags: str, package: Path = ROOT) -> ServerProcess:
        """A server in a process of its own, without models or devices; what it stores lies in the folder."""
        empty = folder / "no-models"
        empty.mkdir(exist_ok=True)
        return ServerProcess(
            empty, "--cluster", self.address, "--cluster-token", self.token, "--devices", "none",
            "--state-dir", str(folder / "state"), "--max-queue", "100", "--grace", "1", *flags,
            env=importing(package),
        )  # fmt: skip

    @property
    def gcs(self) -> psutil.Process:
        return next(each for each in left_of(str(self.folder)) if each.name() == "gcs_server")


def left_of(word: str) -> Iterator[psutil.Process]:
    """Processes with this word in their command lines."""
    for each in psutil.process_iter(["cmdline"]):
        if word in " ".join(each.info["cmdline"] or ()):
            yield each


@pytest_asyncio.fixture(scope="package")
async def cluster(model_dir: Path) -> AsyncIterator[Cluster]:
    """With node `a`, which has two lanes."""
    made = Cluster(model_dir)
    try:
        await made.start()
        made.node("a", "--cpu-lanes", "2")
        yield made
    finally:
        await made.stop()


class Front:
    """A server without devices or models of its own."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def health(self) -> Any:
        return (await self.app.get("/health"))[1]

    async def lanes(self, count: int, node: str = "a") -> None:
        """Until so many lanes of this node have nothing to do."""

        async def idle() -> bool:
            found = (await self.health())["lanes"]
            names = [each for each in found if each["name"].startswith(f"{node}/")]
            return len([each for each in names if each["status"] == "idle"]) == count

        await until(idle, f"{count} lanes of {node}: {await self.health()}")

    async def status(self, node: str) -> str | None:
        found = (await self.health())["cluster"]["nodes"]
        return next((each["status"] for each in found if each["name"] == node), None)

    def picture(self, **fields: Any) -> asyncio.Task[tuple[int, Any]]:
        body = {"prompt": "a cat", "size": "64x64", "steps": 2, **fields}
        return asyncio.create_task(self.app.post("/v1/images/generations", **body))


@pytest_asyncio.fixture(scope="package")
async def front(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    empty = tmp_path_factory.mktemp("no-models")
    async with runner_of(empty)(
        cluster=cluster.address, cluster_token=cluster.token, devices=("none",), max_queue=200, waits=WAITS,
        any_model=True, heartbeat=1,
    ) as app:  # fmt: skip
        yield Front(app)
