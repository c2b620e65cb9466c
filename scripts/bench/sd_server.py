"""This server against sd.cpp's own `sd-server`, compiled from the source that the binding vendors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionError, ClientSession, ClientTimeout
from PIL import Image

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.processes import NICENESS
from gguf_imagegen.pictures.nearness import psnr
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec, Role
from scripts.bench.figures import CACHE, Run, Teller, Unavailable
from scripts.bench.server import GENERATIONS, MODEL, PICTURE, client, frames, now, seconds, serving, stream
from scripts.bench.synthetic import write_synthetic_sd1

ENGINE = "stable-diffusion-cpp-python"
FLAGS: dict[Role, str] = {"model": "--model", "taesd": "--taesd"}
AT_ONCE = 4
DEADLINE = 600.0
Make = Callable[[], Awaitable[bytes]]


async def sd_server(run: Run) -> None:
    """The tiny model; and one of Stable Diffusion 1.5's size, unless the run is to be quick."""
    binary = await asyncio.to_thread(built, run)
    await compare(run, binary, MODEL, PICTURE, "tiny", crowds=True)
    if not run.quick:
        with tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder:
            model = write_synthetic_sd1(Path(folder) / "sd15.safetensors")
            body = {**PICTURE, "size": run.size, "cfg_scale": 1}
            await compare(run, binary, str(model), body, "SD 1.5's size")


async def compare(
    run: Run, binary: Path, model: str, body: dict[str, Any], label: str, *, crowds: bool = False
) -> None:
    catalog, default = choose_models(run.settings.model_copy(update={"model": model}))
    entry = catalog.get(default)
    wanted, warnings = parse_request(body)
    spec = plan(wanted, entry, run.settings, "generation", warnings).spec
    async with (
        serving(run, model) as (_, ours),
        their_server(binary, catalog, entry, run.settings.threads) as theirs,
    ):
        mine, other = asker(ours, body), asker(theirs, their_body(spec))
        likeness = decibels(await mine(), await other())
        own_times, other_times, firsts = [], [], []
        for _ in run.rounds(run.repeats):
            own_times.append(await seconds(mine()))
            other_times.append(await seconds(other()))
            firsts.append(await first_step(ours, body))
        run.tell(f"{label}: this server, a picture", "s", own_times)
        run.tell(f"{label}: sd-server, a picture", "s", other_times)
        run.tell_ratios(f"{label}: sd-server ÷ this server", other_times, own_times)
        run.tell(f"{label}: likeness of the pictures (PSNR)", "dB", [likeness], fewest=40)
        run.tell(f"{label}: this server, first step told", "s", firsts)
        run.tell_ratios(f"{label}: first sign of progress, sd-server ÷ this server", other_times, firsts)
        if crowds:
            await compare_crowds(run, label, (ours, mine), (theirs, other))


async def compare_crowds(
    run: Run, label: str, ours: tuple[ClientSession, Make], theirs: tuple[ClientSession, Make]
) -> None:
    """Several requests at once: how long all take, how many are answered, and how soon others are."""
    pairs = [(await crowd(*ours), await crowd(*theirs)) for _ in run.rounds(run.repeats)]
    for name, crowds in zip(("this server", "sd-server"), zip(*pairs, strict=True), strict=True):
        answered = (each.answered for each in crowds)
        run.tell(f"{label}: {name}, answered of {AT_ONCE} at once", "", answered, fewest=AT_ONCE)
        run.tell(f"{label}: {name}, GET /v1/models meanwhile", "ms", (1000 * each.other for each in crowds))
    own, other = ([each.whole for each in crowds] for crowds in zip(*pairs, strict=True))
    run.tell_ratios(f"{label}: {AT_ONCE} at once, sd-server ÷ this server", other, own)


@dataclass(frozen=True)
class Crowd:
    """Seconds until all were answered or refused, how many were answered, seconds of one without work."""

    whole: float
    answered: int
    other: float


async def crowd(session: ClientSession, make: Make) -> Crowd:
    began = now()
    making = [asyncio.ensure_future(make()) for _ in range(AT_ONCE)]
    await asyncio.sleep(0.1)
    other = await seconds(listing(session))
    ends = await asyncio.gather(*making, return_exceptions=True)
    return Crowd(now() - began, sum(isinstance(end, bytes) for end in ends), other)


async def listing(session: ClientSession) -> None:
    async with session.get("/v1/models", timeout=ClientTimeout(DEADLINE)) as answer:
        await answer.read()


def asker(session: ClientSession, body: dict[str, Any]) -> Make:
    """One whole request, by the API that both servers have."""

    async def make() -> bytes:
        sent = {**body, "response_format": "b64_json"}
        async with session.post(GENERATIONS, json=sent, timeout=ClientTimeout(DEADLINE)) as answer:
            content = await answer.json(content_type=None)
            answer.raise_for_status()
            return base64.b64decode(content["data"][0]["b64_json"])

    return make


async def first_step(session: ClientSession, body: dict[str, Any]) -> float:
    """From a streamed request to the frame of its first step."""
    began, first = now(), math.inf
    async with session.post(GENERATIONS, json=stream(body)) as answer:
        async for at, item in frames(answer):
            if item["progressed_steps"] >= 1:
                first = min(first, at - began)
    return first


def decibels(one: bytes, other: bytes) -> float:
    """Peak signal-to-noise ratio of two files."""
    return psnr(*(Image.open(io.BytesIO(each)).convert("RGB").tobytes() for each in (one, other)))


def their_body(spec: Generate) -> dict[str, Any]:
    """The same picture in sd-server's words, which it takes within the prompt."""
    sampling: dict[str, Any] = {
        "sample_method": spec.sampler,
        "sample_steps": spec.steps,
        "guidance": {
            "txt_cfg": spec.cfg_scale,
            "img_cfg": spec.image_cfg_scale,
            "distilled_guidance": spec.guidance,
        },
    }
    if spec.schedule != "default":
        sampling["scheduler"] = spec.schedule
    if spec.flow_shift is not None:
        sampling["flow_shift"] = spec.flow_shift
    extra = {
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seed,
        "clip_skip": spec.clip_skip,
        "sample_params": sampling,
    }
    words = f"{spec.prompt}<sd_cpp_extra_args>{json.dumps(extra)}</sd_cpp_extra_args>"
    return {"prompt": words, "size": f"{spec.width}x{spec.height}"}


@asynccontextmanager
async def their_server(
    binary: Path, catalog: Catalog, entry: Entry, threads: int
) -> AsyncIterator[ClientSession]:
    """sd-server with the same files, threads, random numbers and priority as this project's engine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [word for role, path in catalog.paths(entry).items() for word in (FLAGS[role], str(path))]
    rng = LoadSpec(name="", files={}, threads=threads).rng
    command = ["nice", "-n", str(NICENESS), str(binary), *files, "--threads", str(threads), "--rng", rng]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: ASYNC220
            [*command, "--listen-port", str(port)], stdout=log, stderr=subprocess.STDOUT, cwd=binary.parent
        )
        try:
            async with client(f"http://127.0.0.1:{port}") as session:
                await until_up(session, process)
                yield session
        finally:
            process.kill()
            process.wait()


async def until_up(session: ClientSession, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise Unavailable(f"sd-server ended with status {process.returncode} before it listened")
        try:
            await listing(session)
        except ClientConnectionError:
            await asyncio.sleep(0.05)
        else:
            return
    raise Unavailable("sd-server did not listen in time")


# -- the build ------------------------------------------------------------------------------------------


def built(run: Teller) -> Path:
    """The program, compiled unless that was done before: sd.cpp's default flags, without its web page."""
    folder = CACHE / f"sd-server-{version(ENGINE)}"
    binary = folder / "build" / "bin" / "sd-server"
    if not binary.exists():
        run.say("compiling sd-server, which takes minutes ...")
        folder.mkdir(parents=True, exist_ok=True)
        cmake, environment = cmake_program()
        source = fetched(folder)
        configure = [cmake, "-S", str(source), "-B", str(folder / "build"), "-DSD_SERVER_BUILD_FRONTEND=OFF"]
        call([*configure, "-DCMAKE_BUILD_TYPE=Release"], environment)
        jobs = str(usable_cores())
        call(
            [cmake, "--build", str(folder / "build"), "--target", "sd-server", "--parallel", jobs],
            environment,
        )
    return binary


def fetched(folder: Path) -> Path:
    """sd.cpp's source out of the binding's source package."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    requirement = f"{ENGINE}=={version(ENGINE)}"
    call([*pip, "--no-deps", "--no-binary", ":all:", "--dest", str(folder), requirement])
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(folder, filter="data")
    (source,) = folder.glob("*/vendor/stable-diffusion.cpp")
    return source


def cmake_program() -> tuple[str, dict[str, str]]:
    """CMake and the environment that it needs: the machine's own, else PyPI's in the cache."""
    if found := shutil.which("cmake"):
        return found, dict(os.environ)
    tools = CACHE / "tools"
    if not (tools / "bin" / "cmake").exists():
        call([sys.executable, "-m", "pip", "--quiet", "install", "--target", str(tools), "cmake"])
    return str(tools / "bin" / "cmake"), {**os.environ, "PYTHONPATH": str(tools)}


def call(command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command that the comparison needs; its last lines say why there is no comparison."""
    ran = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if ran.returncode:
        last = " ".join(re.sub(r"\s+", " ", ran.stdout).split(" ")[-60:])
        raise Unavailable(f"{Path(command[0]).name} failed: {last}")
