"""What the server costs on top of the engine, measured on the tiny random model: time, latency, memory.

Figures are medians with their least and greatest value; a target is the most that a figure may be. A miss
is marked and never fails the run: timings depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import bench_pull
import psutil
import uvloop
from aiohttp import ClientResponse, ClientSession, ClientTimeout, TCPConnector, web
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gguf_imagegen import events
from gguf_imagegen.api.app import make_app
from gguf_imagegen.catalog.choose import choose_models
from gguf_imagegen.engine import wire, worker
from gguf_imagegen.engine.cores import usable_cores
from gguf_imagegen.engine.process import EngineProcess
from gguf_imagegen.engine.protocol import GenerateSpec
from gguf_imagegen.events import EngineEvent
from gguf_imagegen.jobs.plan import plan
from gguf_imagegen.jobs.resident import Resident
from gguf_imagegen.schema.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.testmodel import write_test_model

MODEL = "tiny-random"
GENERATIONS = "/v1/images/generations"
PICTURE = {"prompt": "a lighthouse at dusk", "seed": 1, "size": "128x128", "steps": 20}
SMALL = {**PICTURE, "size": "64x64", "steps": 1}
LONG = {**PICTURE, "size": "256x256", "steps": 150}
FOLLOWERS = 500
WARM_UP = 20
"""Images after which a worker's memory should have stopped growing."""
DEADLINE = 60.0
STAMPING_WORKER = "--stamping-worker"
now = time.perf_counter


@dataclass(frozen=True)
class Figure:
    """`value` is the median of what was measured; `most` is the target, None where there is none."""

    bench: str
    name: str
    unit: str
    value: float
    least: float
    greatest: float
    most: float | None

    @property
    def verdict(self) -> str:
        if self.most is None:
            return ""
        return "pass" if self.value <= self.most else "miss"


class Run:
    """One run of one bench: how much to measure, and where its figures go."""

    def __init__(self, name: str, settings: Settings, repeats: int, quick: bool, bar: Progress) -> None:
        self.settings = settings
        self.repeats = repeats
        self.quick = quick
        self.figures: list[Figure] = []
        self._name = name
        self._bar = bar
        self._task = bar.add_task(name, total=None)

    def rounds(self, count: int) -> Iterator[int]:
        """Count to `count`, and show it."""
        self._bar.reset(self._task, total=count)
        for number in range(count):
            yield number
            self._bar.advance(self._task)

    def tell(self, name: str, unit: str, measured: Iterable[float], most: float | None = None) -> None:
        values = list(measured)
        self.figures.append(
            Figure(self._name, name, unit, statistics.median(values), min(values), max(values), most)
        )


class Server:
    """`gguf-imagegen serve` in a process of its own, on a free port."""

    def __init__(self, settings: Settings) -> None:
        self._log = settings.models_dir / f"serve-{time.monotonic_ns()}.log"
        command = [
            sys.executable, "-m", "gguf_imagegen", "serve", "--port", "0", "--grace", "0", "--model", MODEL,
            "--models-dir", str(settings.models_dir), "--threads", str(settings.threads),
        ]  # fmt: skip
        self.began = now()
        with self._log.open("w") as stderr:
            self._process = subprocess.Popen(command, stderr=stderr, env={**os.environ, "COLUMNS": "200"})
        self.http = psutil.Process(self._process.pid)

    def url(self) -> str | None:
        """Where it listens, once it does."""
        match = re.search(r"(http://\S+)/v1", self._log.read_text())
        if match is None and self._process.poll() is not None:
            raise RuntimeError(f"the server did not start: {self._log.read_text()}")
        return match and match[1]

    def worker(self) -> psutil.Process:
        return next(each for each in self.http.children() if "gguf_imagegen.engine.worker" in each.cmdline())

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)


@asynccontextmanager
async def serving(run: Run) -> AsyncIterator[tuple[Server, ClientSession]]:
    """A server with its model loaded, and a client of it."""
    server = Server(run.settings)
    try:
        url = await asyncio.wait_for(listening(server), DEADLINE)
        async with client(url) as session:
            await asyncio.wait_for(loaded(session), DEADLINE)
            yield server, session
    finally:
        server.stop()


@asynccontextmanager
async def hosting(run: Run, engine: StampedEngine) -> AsyncIterator[ClientSession]:
    """A client of a server within this process, where the engine can be watched."""
    catalog, default = choose_models(run.settings)
    async with reaching(make_app(run.settings, catalog, default, lambda: engine)) as session:
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


async def make(session: ClientSession, body: dict[str, object], response_format: str = "b64_json") -> None:
    """A whole request, not streamed."""
    async with session.post(GENERATIONS, json={**body, "response_format": response_format}) as answer:
        await answer.read()
        answer.raise_for_status()


def stream(body: dict[str, object], dialect: str = "llama-box") -> dict[str, object]:
    return {**body, "stream": True, "stream_options": {"dialect": dialect}}


async def frames(answer: ClientResponse) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """The items of all frames, and when each was there to be read."""
    async for line in answer.content:
        at = now()
        if line.startswith(b"data: {"):
            for item in json.loads(line[6:])["data"]:
                yield at, item


def rss(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


# -- the benches ----------------------------------------------------------------------------------------


async def request(run: Run) -> None:
    """A whole request over HTTP against the same generation asked of the engine directly."""
    catalog, default = choose_models(run.settings)
    entry = catalog.get(default)
    wanted, warnings = parse_request(PICTURE)
    spec = plan(wanted, entry, run.settings, "generation", warnings).spec
    resident = Resident(catalog, run.settings, EngineProcess, run.settings.threads)
    try:
        engine = await resident.engine_for(entry, lambda event: None)
        async with serving(run) as (_, session):
            await exhaust(engine.generate(spec))
            await make(session, PICTURE)
            served, direct = [], []
            for _ in run.rounds(run.repeats):
                served.append(await seconds(make(session, PICTURE)))
                direct.append(await seconds(exhaust(engine.generate(spec))))
    finally:
        await resident.close("measured")
    inside = await overheads(run)
    pairs = list(zip(served, direct, strict=True))
    run.tell("over HTTP, PNG encoded", "ms", (1000 * a for a in served))
    run.tell("engine directly, raw pixels", "ms", (1000 * b for b in direct))
    run.tell("ratio", "", (a / b for a, b in pairs), most=1.05)
    run.tell("overhead, one against the other", "ms", (1000 * (a - b) for a, b in pairs), most=20)
    run.tell("overhead, within one request", "ms", (1000 * each for each in inside), most=20)


async def overheads(run: Run) -> list[float]:
    """Of each request what the engine did not take of it: free of the noise between two generations."""
    engine = StampedEngine()
    async with hosting(run, engine) as session:
        await make(session, PICTURE)
        return [await seconds(make(session, PICTURE)) - engine.took for _ in run.rounds(run.repeats)]


async def swap(run: Run) -> None:
    """Two models by turns: what a change costs beyond the load itself, and what room for both saves."""
    other = run.settings.models_dir / "other.yaml"
    files = {"model": f"{MODEL}.gguf", "taesd": f"{MODEL}-tae.gguf"}
    other.write_text(
        json.dumps({"version": 1, "models": {"other": {"family": "ovis-image", "files": files}}})
    )
    settings = run.settings.model_copy(update={"catalog": other})
    catalog, _ = choose_models(settings)
    resident = Resident(catalog, settings, EngineProcess, settings.threads)
    loads: list[float] = []
    beyond = []

    def note(event: events.Loading | events.Loaded) -> None:
        if isinstance(event, events.Loaded):
            loads.append(event.seconds)

    try:
        await resident.engine_for(catalog.get(MODEL), note)
        for number in run.rounds(run.repeats):
            began = now()
            await resident.engine_for(catalog.get((MODEL, "other")[number % 2 == 0]), note)
            beyond.append(1000 * (now() - began - loads[-1]))
    finally:
        await resident.close("measured")
    run.tell("load of a model, as the engine tells it", "ms", (1000 * load for load in loads))
    run.tell("swap beyond the load", "ms", beyond, most=300)
    for room in (1, 2):
        app = make_app(settings.model_copy(update={"max_loaded": room}), catalog, MODEL)
        async with reaching(app) as session:
            await make(session, {**SMALL, "model": "other"})
            pairs = [
                await seconds(make(session, {**SMALL, "model": name}))
                for _ in run.rounds(max(2, run.repeats // 2))
                for name in (MODEL, "other")
            ]
        run.tell(f"request to and fro, room for {room}", "ms", (1000 * each for each in pairs))


async def exhaust(iterator: AsyncIterator[EngineEvent]) -> None:
    async for _ in iterator:
        pass


async def seconds(work: Coroutine[Any, Any, None]) -> float:
    began = now()
    await work
    return now() - began


async def first_byte(run: Run) -> None:
    """From sending a streamed request on an idle server to the first byte of the stream."""
    async with serving(run) as (_, session):
        await make(session, SMALL)
        waits = []
        for _ in run.rounds(run.repeats):
            began = now()
            async with session.post(GENERATIONS, json=stream(SMALL)) as answer:
                await answer.content.readany()
                waits.append(now() - began)
                await answer.read()
    run.tell("first stream byte", "ms", (1000 * wait for wait in waits), most=10)


async def step(run: Run) -> None:
    """From the engine's callback in the worker to the step's frame in the client, while the CPU computes."""
    engine = StampedEngine()
    to_server, to_client, whole = [], [], []
    async with hosting(run, engine) as session:
        await make(session, PICTURE)
        for _ in run.rounds(run.repeats):
            for called, arrived, read in await step_times(session, engine):
                to_server.append(1000 * (arrived - called))
                to_client.append(1000 * (read - arrived))
                whole.append(1000 * (read - called))
    run.tell("callback in the worker to the server's loop", "ms", to_server)
    run.tell("server's loop to the client", "ms", to_client)
    run.tell("callback to the client", "ms", whole, most=5)


async def step_times(session: ClientSession, engine: StampedEngine) -> list[tuple[float, float, float]]:
    """Of each step of one picture: when it was called back, when the server had it, when the client."""
    engine.times.clear()
    read: dict[int, float] = {}
    async with session.post(GENERATIONS, json=stream(PICTURE)) as answer:
        async for at, item in frames(answer):
            read.setdefault(item["progressed_steps"], at)
    return [(*times, read[number]) for number, times in engine.times.items()]


class StampedEngine(EngineProcess):
    """Remembers how long the last image took, and when each step was called back and when it came here."""

    def __init__(self) -> None:
        super().__init__(command=(sys.executable, str(Path(__file__).resolve()), STAMPING_WORKER))
        self.times: dict[int, tuple[float, float]] = {}
        self.took = 0.0

    async def generate(self, spec: GenerateSpec) -> AsyncIterator[EngineEvent]:
        began = now()
        async for event in super().generate(spec):
            match event:
                case events.ImageMade():
                    self.took = now() - began
                case events.Progress(phase="sampling", step=step, seconds_per_step=called) if step:
                    self.times[step] = called, now()
            yield event


class StampingWorker(worker.Worker):
    """Sends the time of each callback in the place of the seconds per step; all processes share the clock."""

    def on_progress(self, step: int, steps: int, seconds: float) -> None:
        super().on_progress(step, steps, now())


def run_stamping_worker() -> None:
    """`worker.main` with the class above."""
    messages = worker._private_stdout()
    worker._become_worker()
    commands: SimpleQueue[wire.Command] = SimpleQueue()
    told: SimpleQueue[EngineEvent] = SimpleQueue()
    threading.Thread(target=worker._read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    threading.Thread(target=worker._write_events, args=(messages, told), daemon=True).start()
    computing = StampingWorker(told.put)
    while True:
        computing.run(commands.get())


async def cancel(run: Run) -> None:
    """DELETE on a running job, with another one waiting."""
    answered, gone, started, reloaded = [], [], [], []
    async with serving(run) as (server, session):
        for _ in run.rounds(run.repeats):
            async with (
                session.post(GENERATIONS, json=stream(LONG)) as victim,
                session.post(GENERATIONS, json=stream(SMALL, "both")) as waiting,
            ):
                await until_sampling(victim)
                process = server.worker()
                following = asyncio.create_task(start_and_reload(waiting))
                watching = asyncio.create_task(end_of(process))
                began = now()
                async with session.delete(f"/v1/jobs/{victim.headers['X-Job-Id']}") as answer:
                    assert (await answer.json())["status"] == "cancelled"
                answered.append(now() - began)
                gone.append(await watching - began)
                start, reload = await following
                started.append(start - began)
                reloaded.append(reload - start)
    run.tell("DELETE to its answer", "s", answered)
    run.tell("DELETE to the worker's end", "s", gone)
    run.tell("DELETE to the start of the next job", "s", started)
    run.tell("all three", "s", map(max, answered, gone, started), most=0.5)
    run.tell("start of the next job to model reloaded", "s", reloaded)


async def until_sampling(answer: ClientResponse) -> None:
    async for _, item in frames(answer):
        if item["progressed_steps"] > 1:
            return
    raise RuntimeError("the job ended before it could be cancelled")


async def start_and_reload(answer: ClientResponse) -> tuple[float, float]:
    """When the job left the queue, and when its first phase after the loading began."""
    async for line in answer.content:
        if line.startswith(b": job.started"):
            start = now()
            break
    async for at, item in frames(answer):
        if item["phase"] not in ("queued", "loading"):
            await answer.read()
            return start, at
    raise RuntimeError("the waiting job was not worked on")


async def end_of(process: psutil.Process) -> float:
    while True:
        if not process.is_running():
            return now()
        await asyncio.sleep(0.001)


async def followers(run: Run) -> None:
    """Many clients on the events of one job, from its queue to its end."""
    incomplete, peaks, spreads = [], [], []
    async with serving(run) as (server, session):
        idle = rss(server.http)
        for _ in run.rounds(1 if run.quick else 3):
            async with (
                session.post(GENERATIONS, json=stream(LONG)) as blocker,
                session.post(GENERATIONS, json=stream(PICTURE)) as followed,
            ):
                watching = asyncio.create_task(peak_of(server.http))
                path = f"/v1/jobs/{followed.headers['X-Job-Id']}/events"
                answers = await asyncio.gather(*(session.get(path) for _ in range(FOLLOWERS)))
                async with session.delete(f"/v1/jobs/{blocker.headers['X-Job-Id']}"):
                    pass
                ends = await asyncio.gather(*map(follow, answers))
                watching.cancel()
                complete = [end for end in ends if end is not None]
                incomplete.append(FOLLOWERS - len(complete))
                spreads.append(max(complete) - min(complete))
                peaks.append(await watching)
    run.tell(f"of {FOLLOWERS} followers incomplete", "", incomplete, most=0)
    run.tell("first to last follower's end", "s", spreads)
    run.tell("HTTP process before", "MB", [idle])
    run.tell("HTTP process, greatest RSS", "MB", peaks, most=200)


async def follow(answer: ClientResponse) -> float | None:
    """When the stream came to its proper end; None if a step, the image or the end is missing."""
    async with answer:
        text = await answer.read()
    ids = [int(id) for id in re.findall(rb"^id: (\d+)$", text, re.MULTILINE)]
    whole = ids == list(range(len(ids))) and b".completed" in text and text.endswith(b"data: [DONE]\n\n")
    return now() if whole else None


async def peak_of(process: psutil.Process) -> float:
    """The greatest RSS until cancelled."""
    peak = 0.0
    try:
        while True:
            peak = max(peak, rss(process))
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        return peak


async def idle(run: Run) -> None:
    """A server just started: how soon it is ready and what its HTTP process holds."""
    ready, memory, native = [], [], []
    for _ in run.rounds(run.repeats):
        async with serving(run) as (server, _):
            ready.append(now() - server.began)
            await asyncio.sleep(0.3)
            memory.append(rss(server.http))
            native.append(sum("stable_diffusion_cpp" in each.path for each in server.http.memory_maps()))
    run.tell("start to model loaded", "s", ready, most=2)
    run.tell("HTTP process, RSS", "MB", memory, most=100)
    run.tell("files of the binding mapped into it", "", native, most=0)


async def memory(run: Run) -> None:
    """Both processes over many small images."""
    count = 60 if run.quick else 200
    async with serving(run) as (server, session):
        sizes = {}
        for number in run.rounds(count):
            await make(session, SMALL, "url")
            if number + 1 in (WARM_UP, count):
                sizes[number + 1] = rss(server.worker()), rss(server.http)
    early, late = sizes[WARM_UP], sizes[count]
    run.tell(f"worker after {WARM_UP} images", "MB", [early[0]])
    run.tell(f"worker after {count} images", "MB", [late[0]])
    run.tell("growth of the worker", "MB", [late[0] - early[0]], most=5)
    run.tell("growth of the HTTP process", "MB", [late[1] - early[1]])


async def pull(run: Run) -> None:
    """A large file from a server of this machine: pulled, and fetched by curl and hashed by sha256sum."""
    size = 256_000_000 if run.quick else 1_000_000_000
    curls, pulls = [], []
    with (
        tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-pull-") as name,
        bench_pull.hub(Path(name), size) as url,
    ):
        for _ in run.rounds(run.repeats):
            curls.append(await asyncio.to_thread(bench_pull.by_curl, url, Path(name)))
            pulls.append(await asyncio.to_thread(bench_pull.by_pull, url, Path(name)))
    pairs = list(zip(pulls, curls, strict=True))
    run.tell("curl", "MB/s", (size / 1e6 / b.download for b in curls))
    run.tell("pull, until it verifies", "MB/s", (size / 1e6 / a.download for a in pulls))
    run.tell("time of the download, pull to curl", "", (a.download / b.download for a, b in pairs), most=1.25)
    run.tell("time with sha256, pull to curl + sha256sum", "", (a.whole / b.whole for a, b in pairs))
    run.tell("CPU of the download, pull to curl", "", (a.cpu / b.cpu for a, b in pairs))


BENCHES: dict[str, Callable[[Run], Coroutine[Any, Any, None]]] = {
    "request": request,
    "first-byte": first_byte,
    "step": step,
    "cancel": cancel,
    "followers": followers,
    "idle": idle,
    "memory": memory,
    "swap": swap,
    "pull": pull,
}


# -- the command ----------------------------------------------------------------------------------------


async def measure(names: list[str], threads: int, repeats: int, quick: bool) -> list[Figure]:
    figures = []
    columns = TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with (
        tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder,
        Progress(*columns, console=Console(stderr=True)) as bar,
    ):
        write_test_model(Path(folder), hidden=256, single_blocks=5)
        settings = Settings(model=MODEL, models_dir=Path(folder), threads=threads)
        for name in names:
            run = Run(name, settings, repeats, quick, bar)
            await BENCHES[name](run)
            figures += run.figures
    return figures


def table(figures: list[Figure], threads: int) -> Table:
    where = f"threads {threads}, cores {usable_cores()}, load {os.getloadavg()[0]:.1f}"
    shown = Table("bench", "figure", title=f"{MODEL}, {where}")
    for heading in ("median", "least", "greatest", "target", ""):
        shown.add_column(heading, justify="right")
    for figure in figures:
        target = "" if figure.most is None else f"≤ {figure.most:g} {figure.unit}"
        numbers = [f"{each:.4g}" for each in (figure.value, figure.least, figure.greatest)]
        mark = {"miss": "[red]miss", "pass": "[green]pass"}.get(figure.verdict, "")
        numbers[0] += f" {figure.unit}"
        shown.add_row(figure.bench, figure.name, *numbers, target, mark)
    return shown


def as_json(figures: list[Figure], threads: int) -> str:
    content = {
        "threads": threads,
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.platform(),
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
    }
    return json.dumps(content, indent=2) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each figure (7)")
    cores = usable_cores()
    parser.add_argument("--threads", type=int, default=cores, help="of the engine; fewer on a busy machine")
    parser.add_argument("--quick", action="store_true", help="three measurements, fewer images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are ended, too
    repeats = 3 if options.quick else max(1, options.repeats)
    figures = uvloop.run(measure(options.only or list(BENCHES), options.threads, repeats, options.quick))
    Console().print(table(figures, options.threads))
    if options.json:
        options.json.write_text(as_json(figures, options.threads))


if __name__ == "__main__":
    if STAMPING_WORKER in sys.argv:
        run_stamping_worker()
    else:
        main()
