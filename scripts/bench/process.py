"""The server's processes: how soon they are ready, what they hold, and what a change of model costs."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from aiohttp import ClientError, ClientSession

from gguf_imagegen.api.app import make_app
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.pool.lane import Lane
from gguf_imagegen.vocabulary import events
from scripts.bench.figures import Run
from scripts.bench.server import (
    MODEL,
    PICTURE,
    SMALL,
    Server,
    loaded,
    make,
    megabytes,
    now,
    reaching,
    rss,
    seconds,
    serving,
    starting,
)
from scripts.bench.synthetic import write_synthetic_sd1

WARM_UP = 20
"""Images after which a worker's memory should have stopped growing."""


async def start(run: Run) -> None:
    """A server just started: how soon it answers, has its model and a first picture; what it holds."""
    answers, ready, pictures, first, memory, native = [], [], [], [], [], []
    for _ in run.rounds(run.repeats):
        async with starting(run) as (server, session):
            await healthy(session)
            answers.append(now() - server.began)
            await loaded(session)
            ready.append(now() - server.began)
            await asyncio.sleep(0.3)
            memory.append(rss(server.http))
            native.append(sum("stable_diffusion_cpp" in each.path for each in server.http.memory_maps()))
        async with starting(run) as (server, session):
            await make(session, PICTURE)
            first.append(now() - server.began)
            pictures.append(await seconds(make(session, PICTURE)))
    run.tell("start to the first answer of /health", "s", answers)
    run.tell("start to model loaded", "s", ready, most=2)
    run.tell("start to the first picture", "s", first)
    run.tell("the same without the picture's own time", "s", map(float.__sub__, first, pictures))
    run.tell("HTTP process, RSS", "MB", memory, most=100)
    run.tell("files of the binding mapped into it", "", native, most=0)


async def healthy(session: ClientSession) -> None:
    while True:
        try:
            async with session.get("/health") as answer:
                if answer.ok:
                    return
        except ClientError:
            pass
        await asyncio.sleep(0.005)


async def memory(run: Run) -> None:
    """Both processes over many small images, and what the engine holds beyond a large model's weights."""
    count = 60 if run.quick else 200
    async with serving(run) as (server, session):
        sizes = {}
        for number in run.rounds(count):
            await make(session, SMALL, "url")
            if number + 1 in (WARM_UP, count):
                sizes[number + 1] = rss(server.worker()), rss(server.http)
    early, late = sizes[WARM_UP], sizes[count]
    weights = megabytes(*run.settings.models_dir.glob("*.gguf"))
    run.tell(f"worker after {WARM_UP} images", "MB", [early[0]])
    run.tell(f"worker after {count} images", "MB", [late[0]])
    run.tell("weights ÷ worker", "", [weights / late[0]])
    run.tell(f"growth of the worker from {WARM_UP} to {count} images", "MB", [late[0] - early[0]], most=5)
    run.tell("growth of the HTTP process meanwhile", "MB", [late[1] - early[1]])
    await large(run)


async def large(run: Run) -> None:
    """Where the weights are most of what is held: a model of Stable Diffusion 1.5's size."""
    with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
        file = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
        async with serving(run, str(file)) as (server, session):
            idle = held(server)
            await make(session, {**SMALL, "size": run.size, "cfg_scale": 1})
            used = held(server)
        weights = megabytes(file)
    run.tell("SD 1.5's size: weights", "MB", [weights])
    run.tell("SD 1.5's size: both processes, loaded", "MB", [idle])
    run.tell("SD 1.5's size: weights ÷ both, loaded", "", [weights / idle])
    run.tell(f"SD 1.5's size: weights ÷ both, after {run.size}", "", [weights / used])


def held(server: Server) -> float:
    return rss(server.worker()) + rss(server.http)


async def swap(run: Run) -> None:
    """Two models by turns: what a change costs beyond the load itself, and what room for both saves."""
    other = run.settings.models_dir / "other.yaml"
    files = {"model": f"{MODEL}.gguf", "taesd": f"{MODEL}-tae.gguf"}
    other.write_text(
        json.dumps({"version": 1, "models": {"other": {"family": "ovis-image", "files": files}}})
    )
    settings = run.settings.model_copy(update={"catalog": other})
    catalog, _ = choose_models(settings)
    lane = Lane(catalog, settings, EngineProcess, Device(threads=settings.threads))
    loads: list[float] = []
    beyond = []

    def note(event: events.Loading | events.Loaded) -> None:
        if isinstance(event, events.Loaded):
            loads.append(event.seconds)

    try:
        async with lane.loaded(catalog.get(MODEL), note):
            pass
        for number in run.rounds(run.repeats):
            began = now()
            async with lane.loaded(catalog.get((MODEL, "other")[number % 2 == 0]), note):
                beyond.append(1000 * (now() - began - loads[-1]))
    finally:
        await lane.close("measured")
    run.tell("load of a model, as the engine tells it", "ms", (1000 * load for load in loads))
    run.tell("swap beyond the load", "ms", beyond, most=300)
    for room in (1, 2):
        chosen = settings.model_copy(update={"max_loaded": room})
        app = make_app(chosen, catalog, MODEL, SdCpp(chosen))
        async with reaching(app) as session:
            await make(session, {**SMALL, "model": "other"})
            pairs = [
                await seconds(make(session, {**SMALL, "model": name}))
                for _ in run.rounds(max(2, run.repeats // 2))
                for name in (MODEL, "other")
            ]
        run.tell(f"request to and fro, room for {room}", "ms", (1000 * each for each in pairs))
