"""A cluster as README.md and docs/cluster.md say: two commands, and a token that the first one makes."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gguf_imagegen.pool.ray import nodes
from tests.conftest import ServerProcess
from tests.pool.ray.conftest import ROOT, NodeProcess, left_of, until

pytestmark = pytest.mark.posix


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path, for sockets; nothing of Ray is left in it."""
    made = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield made
    for each in left_of(str(made)):
        each.kill()
    shutil.rmtree(made, ignore_errors=True)


def run(*words: str) -> str:
    line = [sys.executable, "-m", "gguf_imagegen", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60).stdout


def heads(folder: Path) -> set[int]:
    """Numbers of the processes that are the head of the cluster."""
    return {each.pid for each in left_of(str(folder)) if each.name() == "gcs_server"}


async def test_two_commands(model_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with its own lane and one of another machine, whose head is started again when it was killed.

    It takes its cluster along when it ends.
    """
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with socket.socket() as sock:
        sock.bind(("", 0))
        port = sock.getsockname()[1]
    flags = ("--devices", "cpu", "--threads", "1", "--models-dir", str(model_dir))
    server = ServerProcess(
        model_dir, "--cluster", f"auto:{port}", "--state-dir", str(folder / "state"), *flags
    )
    node: NodeProcess | None = None
    try:
        async with aiohttp.ClientSession(server.url) as session:

            async def health() -> Any:
                async with session.get("/health") as answer:
                    return await answer.json()

            async def joined() -> bool:
                server.log()  # else its pipe is full one day
                return bool((await health())["cluster"]["status"] == "joined")

            async def lanes() -> bool:
                return {"cpu", "second/cpu"} == {lane["name"] for lane in (await health())["lanes"]}

            await until(joined, "a cluster")
            file = folder / "state" / "cluster-token"
            assert file.stat().st_mode & 0o777 == 0o600
            head, token = f"{nodes.own_address()}:{port}", file.read_text().strip()
            words = ["node", "--head", head, "--cluster-token", token, "--name", "second", *flags]
            node = NodeProcess([sys.executable, "-m", "gguf_imagegen", *words], ROOT)
            await until(lanes, "two lanes")
            body = {"prompt": "a cat", "size": "64x64", "steps": 20}
            asked = [session.post("/v1/images/generations", json=body) for _ in range(4)]
            assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 4
            shown = await asyncio.to_thread(run, "cluster", "status", "--url", server.url)
            old = heads(folder)
            for each in left_of(str(folder)):
                if each.pid in old:
                    each.kill()
            await until(lambda: heads(folder) - old, "another head")
            await until(lanes, "two lanes again")
            assert (await session.post("/v1/images/generations", json=body)).status == 200
        assert "cluster: joined" in shown
        assert "second" in shown
        assert "tiny-random" in shown
        assert server.stop() == 0
        node.process.terminate()
        assert await asyncio.to_thread(node.process.wait, 60) == 0
        await until(lambda: not list(left_of(str(folder))), "the end of all of Ray")
    finally:
        if server.process.poll() is None:
            server.kill()
        if node is not None:
            node.end()
