"""A pull against curl: the same file, from the same server of this machine, by turns.

As a program it is that server, in a process of its own so that neither side computes for it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from aiohttp import web

from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.catalog.store import Store, sha256_of
from gguf_imagegen.download.progress import PullEvent, Verifying
from gguf_imagegen.download.pull import Pull
from scripts.bench.figures import Run

NAME = "model.gguf"
SOURCE = "bench/pull"
BLOCK = 1 << 20
COMMIT = "0" * 40
now = time.perf_counter


@dataclass(frozen=True)
class Took:
    """Seconds until all bytes were there, and until their hash was checked too; `cpu` is of the former."""

    download: float
    whole: float
    cpu: float


async def pull(run: Run) -> None:
    """A large file from a server of this machine: pulled, and fetched by curl and hashed by sha256sum."""
    size = 256_000_000 if run.quick else 1_000_000_000
    curls, pulls = [], []
    with (
        tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-pull-") as name,
        hub(Path(name), size) as url,
    ):
        for _ in run.rounds(run.repeats):
            curls.append(await asyncio.to_thread(by_curl, url, Path(name)))
            pulls.append(await asyncio.to_thread(by_pull, url, Path(name)))
    pairs = list(zip(pulls, curls, strict=True))
    run.tell("curl", "MB/s", (size / 1e6 / b.download for b in curls))
    run.tell("pull, until it verifies", "MB/s", (size / 1e6 / a.download for a in pulls))
    run.tell("time of the download, pull to curl", "", (a.download / b.download for a, b in pairs), most=1.25)
    run.tell("time with sha256, pull to curl + sha256sum", "", (a.whole / b.whole for a, b in pairs))
    run.tell("CPU of the download, pull to curl", "", (a.cpu / b.cpu for a, b in pairs))


@contextmanager
def hub(folder: Path, size: int) -> Iterator[str]:
    """The address of a server with one file of about `size` bytes."""
    file = folder / NAME
    block = os.urandom(BLOCK)
    with file.open("wb") as out:
        for _ in range(size // BLOCK):
            out.write(block)
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.bench.pull", str(file)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
        file.unlink()


def by_curl(url: str, folder: Path) -> Took:
    """`curl`, then `sha256sum`."""
    file = folder / f"curl-{NAME}"
    address = f"{url}/{SOURCE}/resolve/main/{NAME}"
    began, used = now(), _cpu(resource.RUSAGE_CHILDREN)
    subprocess.run(["curl", "-s", "-f", "--noproxy", "*", "-o", str(file), address], check=True)
    download, cpu = now() - began, _cpu(resource.RUSAGE_CHILDREN) - used
    subprocess.run(["sha256sum", str(file)], check=True, stdout=subprocess.DEVNULL)
    whole = now() - began
    file.unlink()
    return Took(download, whole, cpu)


def by_pull(url: str, folder: Path) -> Took:
    """As `gguf-imagegen pull` does it; blocks."""
    source = Source(repo=SOURCE, file=NAME)
    marks: list[tuple[float, float]] = []

    def note(event: PullEvent) -> None:
        if isinstance(event, Verifying) and not marks:
            marks.append((now(), _cpu(resource.RUSAGE_SELF)))

    store = Store(folder / "models")
    with patch.dict(os.environ, {"HF_ENDPOINT": url, "NO_PROXY": "127.0.0.1"}):
        began, used = now(), _cpu(resource.RUSAGE_SELF)
        Pull(store, [source], note).run()
    whole = now() - began
    store.path(source.path).unlink()
    store.beside(source.path, "json").unlink()
    [(verifying, spent)] = marks
    return Took(verifying - began, whole, spent - used)


def _cpu(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def stated(file: Path) -> dict[str, str]:
    """What the hub states beside the content: commit, size and hash."""
    sha256 = sha256_of(file, lambda done, total: None)
    size = str(file.stat().st_size)
    return {"X-Repo-Commit": COMMIT, "X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": size}


async def serve(file: Path) -> None:
    """Print an address and answer there, HEAD and ranges included."""
    headers = stated(file)

    async def resolve(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(file, headers=headers)

    app = web.Application()
    app.add_routes([web.get(f"/{SOURCE}/resolve/{{revision}}/{NAME}", resolve)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
