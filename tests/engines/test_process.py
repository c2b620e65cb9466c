"""The engine through its front door: a real worker process with a real (tiny) model, and dying workers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio
from msgspec.structs import replace

from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.engines.process import WAITING, WORKER, EngineProcess, worker_environment
from gguf_imagegen.engines.sdcpp.library import self_test
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Generate, Hires, LoadSpec, Lora, PreviewMode, Role, StepCache
from gguf_imagegen.vocabulary.errors import GenerationFailed, ModelLoadFailed, WorkerCrashed
from gguf_imagegen.vocabulary.events import (
    EngineEvent,
    Loaded,
    Loading,
    Made,
    Notice,
    Phase,
    PhaseChanged,
    Preview,
    Progress,
)

pytestmark = pytest.mark.posix

SPEC = Generate(
    prompt="a lighthouse",
    negative_prompt="",
    width=64,
    height=64,
    steps=3,
    sampler="euler",
    schedule="discrete",
    cfg_scale=1.0,
    image_cfg_scale=1.0,
    guidance=3.5,
    seed=42,
    n=1,
    clip_skip=-1,
    eta=None,
    flow_shift=None,
    step_cache="none",
    step_cache_threshold=None,
    strength=0.75,
    vae_tiling=False,
    init_image=None,
    mask=None,
    ref_images=(),
    control_image=None,
    control_strength=0.9,
    loras=(),
    hires=None,
    skip_layers=None,
    preview="none",
    preview_steps=(),
    preview_interval=0.0,
)
LONG = replace(SPEC, steps=2000)
GRADIENT = RawImage(
    64, 64, 3, bytes(x * 4 * (channel == 0) for _ in range(64) for x in range(64) for channel in range(3))
)
RIGHT_HALF = RawImage(64, 64, 1, (bytes(32) + b"\xff" * 32) * 64)


SHARES_ALWAYS = """
from gguf_imagegen.engines.sdcpp import worker
worker.LEAST_SHARED_MS = worker.LEAST_SHARED = 0.0
worker.main()
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadSpec:
    files = cast("dict[Role, Path]", write_test_model(tmp_path_factory.mktemp("model")))
    return LoadSpec("test", files, threads=1)


@pytest_asyncio.fixture(scope="session")
async def engine(model: LoadSpec) -> AsyncIterator[EngineProcess]:
    """One loaded engine for all tests that leave it in good order."""
    async with loaded(model) as process:
        yield process


@asynccontextmanager
async def loaded(model: LoadSpec, command: Sequence[str] = WORKER) -> AsyncIterator[EngineProcess]:
    process = EngineProcess(command=command)
    try:
        await all_of(process.load(model))
        yield process
    finally:
        await process.close()


async def all_of(events: AsyncIterator[EngineEvent]) -> list[EngineEvent]:
    return [event async for event in events]


async def images(engine: EngineProcess, spec: Generate) -> list[Made]:
    return [event async for event in engine.run(spec) if isinstance(event, Made)]


async def until_step(events: AsyncIterator[EngineEvent], step: int) -> None:
    async for event in events:
        if isinstance(event, Progress) and event.step >= step:
            return
    raise AssertionError(f"step {step} never came")


def phases(events: list[EngineEvent]) -> list[Phase]:
    return [event.phase for event in events if isinstance(event, PhaseChanged)]


def test_the_binding_fits_the_library() -> None:
    assert self_test() == []


async def test_loading_tells_how_far_it_is(model: LoadSpec) -> None:
    engine = EngineProcess()
    try:
        *loading, last = await all_of(engine.load(model))
        names = {path.name for path in model.files.values()}
        assert loading
        assert all(isinstance(event, Loading) and event.what in names for event in loading)
        assert isinstance(last, Loaded)
        assert last.family == "Ovis Image"
        assert last.backend
        assert engine.alive
    finally:
        await engine.close()
    assert not engine.alive


async def test_an_image_comes_with_each_of_its_steps(engine: EngineProcess) -> None:
    events = await all_of(engine.run(SPEC))
    assert phases(events) == ["conditioning", "sampling", "decoding"]
    steps = [(event.step, event.steps) for event in events if isinstance(event, Progress)]
    assert steps == [(0, 3), (1, 3), (2, 3), (3, 3)]
    image = events[-1]
    assert isinstance(image, Made)
    picture = image.artifact
    assert (picture.width, picture.height, len(picture.data)) == (64, 64, 64 * 64 * 3)
    assert image.timings.steps == 3
    assert 0 < image.timings.sampling_ms < image.timings.total_ms


async def test_each_image_of_several_is_what_its_seed_alone_makes(engine: EngineProcess) -> None:
    together = await images(engine, replace(SPEC, n=3))
    alone = [(await images(engine, replace(SPEC, seed=seed)))[0] for seed in (42, 43, 44)]
    assert [image.index for image in together] == [0, 1, 2]
    assert [image.artifact for image in together] == [image.artifact for image in alone]
    assert [image.index for image in together] == [0, 1, 2]
    assert len({image.artifact.data for image in together}) == 3


async def test_images_share_a_text_that_takes_long_to_encode(engine: EngineProcess, model: LoadSpec) -> None:
    """From the second image of the model on: one call makes the same pictures, and each step is told."""
    spec = replace(SPEC, n=3, sampler="euler_a", preview="proj", preview_steps=(1, 3))
    alone = [image.artifact for image in await images(engine, spec)]
    async with loaded(model, (sys.executable, "-c", SHARES_ALWAYS)) as sharing:
        for conditioned, decoded in (([0, 1], [0, 2]), ([0], [2])):
            events = await all_of(sharing.run(spec))
            told = [(e.phase, e.index) for e in events if isinstance(e, PhaseChanged)]
            assert [index for phase, index in told if phase == "sampling"] == [0, 1, 2]
            assert [index for phase, index in told if phase == "conditioning"] == conditioned
            assert [index for phase, index in told if phase == "decoding"] == decoded
            steps = [(e.index, e.step) for e in events if isinstance(e, Progress) and e.step]
            assert steps == [(index, step) for index in range(3) for step in (1, 2, 3)]
            previews = [(e.index, e.step) for e in events if isinstance(e, Preview)]
            assert previews == [(index, step) for index in range(3) for step in (1, 3)]
            made = [event for event in events if isinstance(event, Made)]
            assert [image.artifact for image in made] == alone
            assert all(image.timings.steps == 3 for image in made)


@pytest.mark.parametrize(("mode", "side"), [("proj", 8), ("tae", 64), ("vae", 64)])
async def test_previews(engine: EngineProcess, mode: PreviewMode, side: int) -> None:
    spec = replace(SPEC, preview=mode)
    previews = [event async for event in engine.run(spec) if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == [1, 2, 3]
    assert {
        (preview.picture.width, preview.picture.height, len(preview.picture.data)) for preview in previews
    } == {(side, side, side * side * 3)}


async def test_only_the_wanted_previews(engine: EngineProcess) -> None:
    spec = replace(SPEC, steps=6, preview="tae", preview_steps=(2, 5))
    previews = [event async for event in engine.run(spec) if isinstance(event, Preview)]
    assert [(preview.step, preview.steps) for preview in previews] == [(2, 6), (5, 6)]
    rare = replace(spec, preview_steps=(), preview_interval=600.0)
    previews = [event async for event in engine.run(rare) if isinstance(event, Preview)]
    assert [preview.step for preview in previews] == [1]


async def test_previews_do_not_change_the_image(engine: EngineProcess) -> None:
    plain, previewed = [(await images(engine, spec))[0] for spec in (SPEC, replace(SPEC, preview="tae"))]
    assert plain.artifact == previewed.artifact


async def test_image_to_image_runs_the_last_steps(engine: EngineProcess) -> None:
    spec = replace(SPEC, steps=4, strength=0.5, init_image=GRADIENT)
    events = await all_of(engine.run(spec))
    assert phases(events) == ["encoding", "conditioning", "sampling", "decoding"]
    assert max(event.step for event in events if isinstance(event, Progress)) == spec.sampling_steps == 3


async def test_a_mask_is_repainted_where_it_is_white(engine: EngineProcess) -> None:
    spec = replace(SPEC, strength=1.0, init_image=GRADIENT)
    whole, masked = [
        (await images(engine, replace(spec, mask=mask)))[0].artifact.data for mask in (None, RIGHT_HALF)
    ]
    assert whole != masked
    assert len(masked) == 64 * 64 * 3


async def test_a_second_pass_makes_it_larger(engine: EngineProcess) -> None:
    hires = Hires(128, 128, steps=2, denoising_strength=0.5, upscaler="latent", model=None)
    spec = replace(SPEC, hires=hires)
    events = await all_of(engine.run(spec))
    assert phases(events) == ["conditioning", "sampling", "hires", "decoding"]
    image = events[-1]
    assert isinstance(image, Made)
    assert (image.artifact.width, image.artifact.height) == (128, 128)
    assert image.timings.steps == 3 + sum(
        event.phase == "hires" and event.step > 0 for event in events if isinstance(event, Progress)
    )


async def test_tiles_are_progress_of_decoding(engine: EngineProcess) -> None:
    spec = replace(SPEC, width=320, steps=1, vae_tiling=True)
    events = await all_of(engine.run(spec))
    tiles = [event for event in events if isinstance(event, Progress) and event.phase == "decoding"]
    assert len(tiles) > 2
    assert tiles[-1].step == tiles[-1].steps


@pytest.mark.parametrize("cache", ["easycache", "dbcache", "taylorseer", "cache-dit", "spectrum"])
async def test_step_caches(engine: EngineProcess, cache: StepCache) -> None:
    """Each leaves steps out where any change counts as little, which makes another picture."""
    spec = replace(SPEC, steps=14)
    plain, cached = [
        (await images(engine, each))[0]
        for each in (spec, replace(spec, step_cache=cache, step_cache_threshold=10))
    ]
    assert cached.artifact.data != plain.artifact.data
    assert cached.timings.steps == plain.timings.steps == 14


async def test_what_the_engine_leaves_out_is_told_once(engine: EngineProcess, tmp_path: Path) -> None:
    spec = replace(SPEC, n=2, loras=(Lora(tmp_path / "gone.safetensors", 1.0),))
    notices = [event.message async for event in engine.run(spec) if isinstance(event, Notice)]
    assert notices == ["The engine says: load lora tensors from gone.safetensors failed."]


async def test_a_refused_request_leaves_the_engine_alive(engine: EngineProcess) -> None:
    with pytest.raises(GenerationFailed, match="no sampler 'unknown-sampler'"):
        await all_of(engine.run(replace(SPEC, sampler="unknown-sampler")))
    assert engine.alive
    assert await images(engine, SPEC)


async def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    engine = EngineProcess()
    try:
        with pytest.raises(ModelLoadFailed) as caught:
            await all_of(engine.load(LoadSpec("broken", {"model": path}, threads=1)))
        assert "broken.gguf" in caught.value.message
        assert str(tmp_path) not in caught.value.message + "".join(engine.log)
    finally:
        await engine.close()


async def test_close_in_mid_step_is_quick(model: LoadSpec) -> None:
    """On all cores, which the other tests leave to each other."""
    async with loaded(replace(model, threads=usable_cores())) as engine:
        events = engine.run(LONG)
        await until_step(events, 2)
        began = time.monotonic()
        await asyncio.gather(engine.close(), engine.close())
        assert time.monotonic() - began < 3
        await engine.close()
        assert not engine.alive
        with pytest.raises(WorkerCrashed):
            await all_of(events)


async def test_a_killed_worker_is_reported_at_once(model: LoadSpec) -> None:
    async with loaded(model) as engine:
        events = engine.run(LONG)
        await until_step(events, 1)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(WorkerCrashed, match="SIGKILL"):
            await asyncio.wait_for(all_of(events), 5)
        assert not engine.alive
        assert engine.last_crash is not None


async def test_a_worker_does_not_outlive_the_end_of_its_stdin(model: LoadSpec) -> None:
    async with loaded(model) as engine:
        events = engine.run(LONG)
        await until_step(events, 1)
        assert engine._process is not None
        assert engine._process.stdin is not None
        engine._process.stdin.close()
        with pytest.raises(WorkerCrashed, match="exit code 0"):
            await asyncio.wait_for(all_of(events), 5)


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import os; os.write(2, b'CRASH: /src/ggml.c:7: GGML_ASSERT(x) failed\\n'); os.abort()",
         "SIGABRT: ggml.c:7: GGML_ASSERT(x) failed"),
        ("import sys; sys.exit(7)", "exit code 7"),
        ("import sys; sys.stdout.write('x' * 100); sys.stdout.flush(); sys.stdin.read()", "unreadable event"),
        ("import time; time.sleep(60)", "no sign of life"),
    ],
)  # fmt: skip
async def test_a_dying_worker_says_why(script: str, told: str) -> None:
    engine = EngineProcess(stall_timeout=0.5, command=(sys.executable, "-c", script))
    with pytest.raises(WorkerCrashed) as caught:
        await all_of(engine.load(LoadSpec("any", {}, threads=1)))
    assert told in caught.value.message
    assert "/src" not in caught.value.message
    assert not engine.alive


async def test_an_engine_that_does_not_load_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that Python aborts at its end, since a thread of the worker reads stdin."""
    (tmp_path / "stable_diffusion_cpp.py").write_text("raise OSError('libgomp.so.1: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorkerCrashed, match=r"\(exit code 1: OSError: libgomp\.so\.1: no such file\)"):
        await all_of(EngineProcess().load(LoadSpec("any", {}, threads=1)))


async def test_one_command_at_a_time(engine: EngineProcess, model: LoadSpec) -> None:
    events = engine.run(SPEC)
    assert isinstance(await anext(events), PhaseChanged)
    with pytest.raises(RuntimeError, match="one command"):
        await all_of(engine.load(model))
    assert await all_of(events)


@pytest.mark.posix
@pytest.mark.parametrize("turns", range(12))
def test_close_while_it_starts(model: LoadSpec, turns: int) -> None:
    """On the server's event loop, too, whoever waits for the load hears that the engine was closed."""
    import uvloop  # only here: Windows lacks it, and other modules take things from this one

    async def close_early() -> None:
        engine = EngineProcess()
        load = asyncio.ensure_future(all_of(engine.load(model)))
        for _ in range(turns):
            await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(WorkerCrashed, match="was closed"):
            await load

    uvloop.run(close_early())


async def test_an_engine_that_never_ran_can_be_closed() -> None:
    engine = EngineProcess()
    await engine.close()
    assert (engine.alive, engine.pid, engine.log) == (False, None, [])


def test_the_worker_gets_no_secrets() -> None:
    environment = worker_environment(
        {"PATH": "/bin", "HF_TOKEN": "a", "imagegen_api_key": "b", "PYTHONPATH": "x"}
    )
    assert environment.keys() == {"PATH", "PYTHONPATH", "OMP_WAIT_POLICY"}
    assert environment["PYTHONPATH"].endswith(f"{os.pathsep}x")


@pytest.mark.parametrize(
    "own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "0"}, {"KMP_BLOCKTIME": "1"}]
)
def test_threads_wait_asleep_unless_the_environment_says_how(own: dict[str, str]) -> None:
    assert worker_environment({})["OMP_WAIT_POLICY"] == "passive"
    kept = worker_environment(own)
    assert {name: kept[name] for name in WAITING if name in kept} == own


@pytest.mark.parametrize(
    ("cgroup", "files"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}),
        ("4:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}),
        ("0::/", {"cpu.max": "1000 100000"}),
    ],
)
def test_cores_are_bounded_by_the_quota(tmp_path: Path, cgroup: str, files: dict[str, str]) -> None:
    for name, text in {
        "proc/self/cgroup": cgroup,
        **{f"sys/fs/cgroup/{k}": v for k, v in files.items()},
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path) == 1


def test_cores_without_a_quota(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == len(os.sched_getaffinity(0))
