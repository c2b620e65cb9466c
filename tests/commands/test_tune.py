"""Tuning: what is measured and kept, when it is used, and what must not be able to spoil it."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from rich.console import Console

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.commands import tune
from gguf_imagegen.commands.tune import work_for
from gguf_imagegen.commands.tuning.candidates import can_have_huge_pages, factors, thread_counts
from gguf_imagegen.commands.tuning.measure import Effort, Speed
from gguf_imagegen.commands.tuning.show import shown
from gguf_imagegen.commands.tuning.tuner import KEPT, PATIENCE_SECONDS, Outcome, Trial, Tuner
from gguf_imagegen.engines.making import make
from gguf_imagegen.engines.process import EngineProcess, worker_environment
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.kernels import kernels_here
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.pictures.nearness import SAME, is_flat, psnr
from gguf_imagegen.planning.load_spec import model_spec
from gguf_imagegen.pool.identity import Machine, this_machine
from gguf_imagegen.pool.lane import Lane
from gguf_imagegen.pool.options import Options
from gguf_imagegen.pool.tunings import FILE, Tuning, Tunings, sizes_of
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec
from gguf_imagegen.vocabulary.errors import GenerationFailed, WorkerCrashed
from gguf_imagegen.vocabulary.events import EngineEvent, Made, Progress
from tests.commands.test_cli import cli, fails_in_one_line
from tests.conftest import DEADLINE, ServerProcess
from tests.fake_engines import QuickEngine

FLAGS = ("--size", "64x64", "--steps", "3", "--threads", "1")
KERNELS = kernels_here("auto")
DEFAULTS = LoadSpec("x", {}, 1).settled("CPU", KERNELS)
TRIED = [
    "defaults", *["kernels int8"] * ("int8" in kernels_here("int8")), *["kernels off"] * bool(KERNELS),
    "no " * bool(DEFAULTS.flash_attention) + "flash attention",
    "no " * bool(DEFAULTS.vae_conv_direct) + "vae conv direct", *["huge pages"] * can_have_huge_pages(),
]  # fmt: skip
PLAIN = LoadSpec("x", {}, 1).settled("CPU", "")
"""Without kernels of ours."""


@pytest.fixture
def folder(model_dir: Path, tmp_path: Path) -> Path:
    """A models folder of one's own."""
    for file in model_dir.glob("*.gguf"):
        os.link(file, tmp_path / file.name)
    return tmp_path


@pytest.fixture(scope="module")
def here() -> Machine:
    machine = this_machine()
    assert machine is not None
    return machine


def tuning(folder: Path, machine: Machine, options: Options) -> Tuning:
    catalog = load_catalog(folder)
    return Tuning(
        options=options, machine=machine, files=sizes_of(catalog.paths(catalog.get("test"))), size="64x64",
        default_seconds=2, tuned_seconds=1, measured="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def keep(folder: Path, machine: Machine, options: Options) -> None:
    Tunings(folder).keep("tiny-random", tuning(folder, machine, options))


# -- the command --------------------------------------------------------------------------------------


def test_the_command_measures_and_keeps(folder: Path, here: Machine) -> None:
    """Every candidate has its speed and likeness, the winner is kept with this machine and these files."""
    (folder / FILE).write_text("not JSON")
    run = cli("tune", "test", "--models-dir", folder, *FLAGS, "--json", folder / "figures.json")
    assert run.returncode == 0, run.stderr
    assert f"trying {TRIED[1]}" in run.stderr
    assert f"{FILE} cannot be read" in run.stderr
    assert "PSNR dB" in run.stdout
    assert "decoding in tiles takes" in run.stdout

    figures = json.loads((folder / "figures.json").read_text())
    assert (figures["size"], figures["picture_steps"], figures["backend"]) == ("64x64", 20, "CPU")
    assert figures["kernels"] == KERNELS
    names = [each["name"] for each in figures["candidates"]]
    assert names[: len(TRIED)] == TRIED, "threads were said by flag"
    default, *others = figures["candidates"]
    assert default["picture"] == pytest.approx(20 * default["step"] + default["decode"])
    for each in others:
        assert each["ratio"] == pytest.approx(each["picture"] / default["picture"])
        assert each["psnr"] >= 30
        assert each["steps_measured"] == 3

    catalog = load_catalog(folder)
    found = Tunings(folder).find("tiny-random", catalog.paths(catalog.get("test")))
    assert found is not None
    assert found.options == Options(**figures["options"])
    assert found.machine == here
    assert found.tuned_seconds <= found.default_seconds
    assert sorted(path.name for path in folder.iterdir()) == [
        FILE, "figures.json", "tiny-random-tae.gguf", "tiny-random.gguf",
    ]  # fmt: skip


def test_ctrl_c_leaves_the_previous_tuning(folder: Path, here: Machine) -> None:
    """Exit code 130, the file to the byte as it was, and no worker left."""
    keep(folder, here, Options(flash_attention=True))
    before = (folder / FILE).read_bytes()
    tune = [sys.executable, "-m", "gguf_imagegen", "tune", "test", "--models-dir", str(folder)]
    with subprocess.Popen([*tune, "--threads", "1"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any("trying defaults" in line for line in process.stderr)
        deadline = time.monotonic() + DEADLINE
        while not (workers := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(DEADLINE) == 130, rest
    assert "stopped; what was tuned before stays" in rest
    assert "Traceback" not in rest
    assert workers
    assert not any(worker.is_running() for worker in workers)
    assert (folder / FILE).read_bytes() == before


def test_what_cannot_be_tuned_ends_in_one_line(tmp_path: Path) -> None:
    """A model that is not there, and one that nobody knows."""
    fails_in_one_line(cli("tune", "nope", "--models-dir", tmp_path), "Models on this machine: ")
    fails_in_one_line(cli("tune", "test", "--models-dir", tmp_path), "make-test-model")


# -- what serve makes of it ---------------------------------------------------------------------------


def test_serve_uses_it(folder: Path, here: Machine) -> None:
    """The load is told in one line and in the models' list; the flag that was given wins."""
    keep(folder, here, Options(threads=2, flash_attention=True, huge_pages=True))
    server = ServerProcess(folder, "--grace", "1")  # says --threads 1
    try:
        server.wait_until_ready()
        with urllib.request.urlopen(f"{server.url}/v1/models/tiny-random", timeout=10) as answer:
            assert json.load(answer)["meta"]["tuned"] == {"flash_attention": True, "huge_pages": True}
        worker = server.worker()
        assert worker is not None
        assert worker.environ()["GLIBC_TUNABLES"].startswith("glibc.malloc.hugetlb=1")
        (line,) = [line for line in server.log().splitlines() if "tuned" in line]
        assert line.endswith(", tuned: flash attention, huge pages")
    finally:
        server.stop()


class Recorder(QuickEngine):
    """Remembers what it was told to load."""

    loaded: list[LoadSpec]

    async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
        self.loaded = [model]
        async for event in super().load(model):
            yield event


async def loaded(folder: Path, **settings: Any) -> LoadSpec:
    """What the engine is told to load, by these settings and the tuning of the folder."""
    engine, catalog = Recorder(), load_catalog(folder)
    lane = Lane(
        catalog,
        Settings(models_dir=folder, **settings),
        lambda: engine,
        Device(threads=7),
        lambda: Available(10**12),
    )
    async with lane.loaded(catalog.get("test"), lambda event: None):
        pass
    await lane.close("done")
    return engine.loaded[0]


TUNED = Options(threads=3, flash_attention=True)


async def test_what_the_user_says_wins(folder: Path, here: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """By flag or by environment, even where it is the default; and all of it can be turned off."""

    async def values(**settings: Any) -> tuple[int, bool | None]:
        spec = await loaded(folder, **settings)
        return spec.threads, spec.flash_attention

    assert await values() == (7, None), "the backend decides"
    keep(folder, here, TUNED)
    assert await values() == (3, True)
    assert await values(flash_attention=False) == (3, False)
    assert await values(tuning=False) == (7, None)
    assert await values(tuning=False, flash_attention=True) == (7, True)
    monkeypatch.setenv("GGUF_IMAGEGEN_THREADS", "0")
    assert await values() == (7, True)


FOREIGN: dict[str, Callable[[Tuning], Tuning]] = {
    "another machine or build (cpu, cores)": lambda one: one.model_copy(
        update={"machine": one.machine.model_copy(update={"cpu": "Z80", "cores": 1})}
    ),
    "another machine or build (kernels)": lambda one: one.model_copy(
        update={"machine": one.machine.model_copy(update={"kernels": "Z80 int4"})}
    ),
    "another machine or build (library)": lambda one: one.model_copy(
        update={"machine": one.machine.model_copy(update={"library": "0"})}
    ),
    "other files": lambda one: one.model_copy(update={"files": {**one.files, "model": 1}}),
}


@pytest.mark.parametrize("what", FOREIGN)
async def test_a_foreign_tuning_is_ignored(
    what: str, folder: Path, here: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Of another machine, build or file: the model is loaded as without it, and the log says why."""
    caplog.set_level("INFO")
    Tunings(folder).keep("tiny-random", FOREIGN[what](tuning(folder, here, TUNED)))
    assert (await loaded(folder)).threads == 7
    assert f"the tuning of tiny-random is of {what}" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"models": {"tiny-random": 1}}', "\0"])
async def test_a_corrupt_file_is_ignored(
    content: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The model is loaded as without it, with a warning."""
    (folder / FILE).write_text(content)
    assert (await loaded(folder)).threads == 7
    assert "cannot be read" in caplog.text


def test_keeping_one_keeps_the_others(folder: Path, here: Machine) -> None:
    """Each model has its own; a folder that is not there is made."""
    tunings = Tunings(folder / "new")
    for name in ("a", "b", "a"):
        tunings.keep(name, tuning(folder, here, Options(threads=len(name))))
    assert list(json.loads(tunings.path.read_text())["models"]) == ["a", "b"]
    assert [path.name for path in (folder / "new").iterdir()] == [FILE]


# -- the search ---------------------------------------------------------------------------------------


class Timed(QuickEngine):
    """Takes as long as `seconds` says of a model; its picture is a ramp, plus `noise`."""

    def __init__(self, seconds: Callable[[LoadSpec], float], noise: Callable[[LoadSpec], int]) -> None:
        super().__init__()
        self._seconds, self._noise = seconds, noise

    async def generate(self, spec: Generate) -> AsyncIterator[EngineEvent]:
        noise, count = self._noise(self.model), spec.width * spec.height * 3
        rgb = bytes(min(255, place % 200 + place % 2 * noise) if noise < 256 else 0 for place in range(count))
        seconds = self._seconds(self.model)
        async for event in super().generate(spec):
            match event:
                case Progress(index, phase, step, steps, _):
                    yield Progress(index, phase, step, steps, seconds)
                case Made(index, RawImage(width, height), timings):
                    yield Made(index, RawImage(width, height, 3, rgb), timings)
                case _:
                    yield event


class Silent:
    """Watches, and says nothing."""

    def trying(self, name: str) -> None: ...

    def step(self, done: int) -> None: ...

    def tried(self, trial: Trial) -> None: ...


async def search(
    model_dir: Path,
    seconds: Callable[[LoadSpec], float],
    noise: Callable[[LoadSpec], int] = lambda model: 0,
    engine: type[Timed] = Timed,
    *,
    tiny: bool = False,
    patience: float = PATIENCE_SECONDS,
) -> Outcome:
    """Threads 2 and 4 of 8, flash attention, direct convolutions, huge pages, by engines of these speeds."""
    settings = Settings(models_dir=model_dir, threads=8)
    catalog = load_catalog(model_dir)
    work = work_for(catalog, catalog.get("test"), settings, Effort(3, 0), "64x64")
    tried = [
        (Options(threads=4), Options(threads=2)),
        *factors("ovis-image", settings, 8, huge_pages=True, defaults=PLAIN, kernels="", int8=False),
    ]
    work = dataclasses.replace(work, tiny=tiny)
    return await Tuner(work, lambda: engine(seconds, noise), Silent(), patience).tune(tried)


def words(outcome: Outcome) -> dict[str, str]:
    return {trial.name: trial.words for trial in outcome.trials}


async def test_what_is_faster_is_kept_together(model_dir: Path) -> None:
    """The best of the threads, then what is at least 3 % faster with it; the rest stays as it is."""

    def seconds(model: LoadSpec) -> float:
        faster = {8: 1.0, 4: 0.8, 2: 0.6}[model.threads]
        return faster * (0.98 if model.flash_attention else 1) * (0.9 if model.huge_pages else 1)

    outcome = await search(model_dir, seconds)
    assert outcome.options == Options(threads=2, huge_pages=True)
    assert words(outcome) == {
        "defaults": "to compare with", "threads 4": KEPT, "threads 2": KEPT,
        "flash attention": "not faster", "vae conv direct": "not faster", "huge pages": KEPT,
        "defaults, again": "to be sure",
    }  # fmt: skip
    assert outcome.tuned_seconds / outcome.default_seconds == pytest.approx(0.54, abs=0.01)
    assert outcome.tiled_decode == 0.003


async def test_another_picture_is_not_taken(model_dir: Path) -> None:
    """However fast: one that differs, and one that shows nothing."""
    outcome = await search(
        model_dir,
        lambda model: 0.5 if model.flash_attention or model.vae_conv_direct else 1,
        lambda model: 256 if model.vae_conv_direct else 100 if model.flash_attention else 0,
    )
    assert outcome.options == Options()
    assert words(outcome)["flash attention"] == "its picture is another"
    assert words(outcome)["vae conv direct"] == "its picture is flat"


async def test_a_candidate_may_fail(model_dir: Path) -> None:
    """A crash and a failure are told with their reason, and the others are tried."""

    def seconds(model: LoadSpec) -> float:
        if model.threads == 4:
            raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")
        if model.flash_attention:
            raise GenerationFailed("Not enough memory.")
        return 0.5 if model.huge_pages else 1

    outcome = await search(model_dir, seconds)
    assert words(outcome)["threads 4"] == "failed: The engine stopped unexpectedly (SIGSEGV)."
    assert words(outcome)["flash attention"] == "failed: Not enough memory."
    assert outcome.options == Options(huge_pages=True)


async def test_the_tiny_decoder_is_told_and_not_taken(model_dir: Path) -> None:
    """Measured with what was kept on; its gain and its likeness are told, and serve uses the full one."""

    def seconds(model: LoadSpec) -> float:
        return (0.5 if model.huge_pages else 1) * (0.1 if model.decoder == "tiny" else 1)

    outcome = await search(model_dir, seconds, lambda model: 100 if model.decoder == "tiny" else 0, tiny=True)
    assert outcome.options == Options(huge_pages=True)
    assert outcome.tuned_seconds / outcome.default_seconds == pytest.approx(0.5, abs=0.01)
    assert words(outcome)["tiny decoder"] == "another picture, yours to choose"
    tiny = outcome.tiny
    assert tiny is not None
    assert tiny.ratio == pytest.approx(0.05, abs=0.01)
    assert tiny.psnr is not None
    assert tiny.psnr < 30
    assert outcome.trials[-1].name == "defaults, again"
    said = told(0.0, tiny=tiny)
    assert f"a picture 0.05 of the defaults' time; it draws another picture ({tiny.psnr:.1f} dB)" in said
    assert '"decoder": "tiny" in a request' in said
    assert "tiny decoder" not in told(0.0)


async def test_a_tiny_decoder_may_fail(model_dir: Path) -> None:
    """By a crash or a picture that shows nothing: told in its row, and nothing is recommended."""

    def seconds(model: LoadSpec) -> float:
        if model.decoder == "tiny":
            raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")
        return 1

    crashed = await search(model_dir, seconds, tiny=True)
    assert words(crashed)["tiny decoder"] == "failed: The engine stopped unexpectedly (SIGSEGV)."
    flat = await search(model_dir, lambda _: 1, lambda model: 256 * (model.decoder == "tiny"), tiny=True)
    assert words(flat)["tiny decoder"] == "its picture is flat"
    for outcome in (crashed, flat):
        assert outcome.tiny is not None
        assert "tiny" not in told(0.0, tiny=outcome.tiny).replace("tiny: threads", "")


@pytest.mark.parametrize(
    ("beside", "decoder", "tried"), [(True, "full", True), (True, "tiny", False), (False, "full", False)]
)
def test_models_with_both_decoders(
    beside: bool,
    decoder: Literal["full", "tiny"],
    tried: bool,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A TAESD beside a VAE, and the VAE is the default; others have nothing to choose."""
    catalog = load_catalog(model_dir)
    entry = catalog.get("test")
    files = {**entry.files, "vae": entry.files["model"]} if beside else entry.files
    entry = entry.model_copy(update={"files": files, "decoder": decoder})
    monkeypatch.setattr(catalog, "checked_files", lambda _: {})
    settings = Settings(models_dir=model_dir, memory_check=False)
    assert work_for(catalog, entry, settings, Effort(3, 0), "64x64").tiny == tried


async def test_defaults_that_fail_end_it(model_dir: Path) -> None:
    """There is nothing to compare with."""

    def seconds(model: LoadSpec) -> float:
        raise WorkerCrashed("The engine stopped unexpectedly (SIGSEGV).")

    with pytest.raises(WorkerCrashed):
        await search(model_dir, seconds)
    with pytest.raises(GenerationFailed, match="flat"):
        await search(model_dir, lambda model: 1, lambda model: 256)


async def test_what_hangs_is_given_up(model_dir: Path) -> None:
    """A first picture that takes far longer than that of the defaults."""

    class Hangs(Timed):
        async def at_step(self, step: int) -> None:
            if self.model.flash_attention:
                await asyncio.Event().wait()

    outcome = await search(model_dir, lambda model: 1, engine=Hangs, patience=0.1)
    assert words(outcome)["flash attention"].startswith("given up: its first picture took over 0.1")
    assert words(outcome)["huge pages"] == "not faster"


async def test_a_machine_that_was_busy_at_first_gives_no_winner(model_dir: Path) -> None:
    """The defaults are measured again at the end; what is not faster than they are then is not taken."""
    calls: list[LoadSpec] = []

    def seconds(model: LoadSpec) -> float:
        calls.append(model)
        return 2.0 if len(calls) <= 4 else 1.0  # warm-up, twice the defaults, tiles

    outcome = await search(model_dir, seconds)
    assert words(outcome)["threads 4"] == KEPT
    assert outcome.options == Options()
    assert outcome.tuned_seconds == outcome.default_seconds
    assert outcome.drift == pytest.approx(-0.5, abs=0.01)


async def test_a_cold_start_does_not_count(model_dir: Path) -> None:
    """The first pictures are slow: the defaults are those of the second measurement, nothing looks faster."""
    calls: list[LoadSpec] = []

    def seconds(model: LoadSpec) -> float:
        calls.append(model)
        return 2.0 if len(calls) <= 2 else 1.0

    outcome = await search(model_dir, seconds)
    assert KEPT not in words(outcome).values()
    assert outcome.trials[-1].name == "defaults, again"
    assert outcome.drift == pytest.approx(0)


async def test_without_candidates_nothing_is_repeated(model_dir: Path) -> None:
    """The defaults alone, once."""
    settings, catalog = Settings(models_dir=model_dir, threads=1), load_catalog(model_dir)
    work = work_for(catalog, catalog.get("test"), settings, Effort(3, 0), "64x64")
    outcome = await Tuner(work, lambda: Timed(lambda model: 1, lambda model: 0), Silent()).tune([])
    assert words(outcome) == {"defaults": "to compare with"}
    assert outcome.drift is None


def told(
    drift: float | None, *, options: Options = TUNED, kept: bool = True, tiny: Trial | None = None
) -> str:
    """What is said at the end of a tuning, on one line."""
    speed = Speed(0.5, 0.2, 0.1, 3, b"")
    trials = (
        Trial("defaults", Options(), speed, 1.0, words="to compare with"),
        Trial("flash attention", TUNED, speed, 0.87, 40.0, KEPT if kept else "not faster"),
    )
    console = Console(file=io.StringIO(), width=200)
    tune.tell(console, "tiny", 20, Outcome(trials, options, 2.0, 1.0, None, "CPU", "", drift, tiny))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_end_does_not_contradict_the_search() -> None:
    """What a row means is said once, and why serve uses what it does."""
    note = "each row is tried on top of what was kept on above it; less than 3 % faster does not count"
    assert note in told(0.0)
    assert "tiny: threads 3, flash attention; 2.00 s become 1.00 s a picture; kept for serve" in told(0.0)
    dropped = told(0.0, options=Options())
    assert "no option was faster in the second measurement; serve uses the defaults" in dropped
    nothing = told(0.0, options=Options(), kept=False)
    assert "nothing is faster than the defaults; serve uses the defaults" in nothing


@pytest.mark.parametrize(
    ("drift", "times"), [(None, ""), (0.14, ""), (-0.14, ""), (0.16, "1.16"), (-0.5, "0.50")]
)
def test_an_unsteady_machine_is_told(drift: float | None, times: str) -> None:
    """Where the defaults' time changed by more than 15 %, up or down."""
    said = told(drift)
    assert ("the machine was not steady" in said) == bool(times)
    assert f"took {times} times as long as at first; tune again while nothing else" in said or not times


# -- what the settings say where nothing was tuned ----------------------------------------------------


@pytest.mark.parametrize(
    ("family", "said", "backend", "kernels", "on"),
    [
        ("sd1", None, "CPU", "", False), ("sd1", None, "CPU", "AVX2 f32", True),
        ("sd1", None, "CUDA0", "", True), ("flux", None, "Vulkan0", "AVX2 f32", False),
        ("flux", None, "Metal", "", False), ("chroma", None, "CUDA0", "", False),
        ("chroma", None, "CPU", "AVX2 f32", False), ("chroma", True, "CUDA0", "", True),
        ("sd1", False, "CUDA0", "", False), ("sd1", False, "CPU", "AVX2 f32", False),
        ("sd1", True, "CPU", "", True),
    ],
)  # fmt: skip
def test_flash_attention_is_the_backends_unless_said(
    family: str, said: bool | None, backend: str, kernels: str, on: bool, model_dir: Path
) -> None:
    """On with CUDA and our kernels, which are faster with it; off where it may change pictures."""
    entry = load_catalog(model_dir).get("test").model_copy(update={"family": family})
    settings = Settings() if said is None else Settings(flash_attention=said)
    spec = model_spec(entry, {}, {}, settings, 1)
    assert spec.settled(backend, kernels).flash_attention == on
    flags = context_flags(f"flash_attention={spec.flash_attention}", backend, kernels)
    direct = backend == "CPU" and bool(kernels)
    assert flags == {
        "diffusion_flash_attn": on, "chroma_use_dit_mask": not on, "enable_mmap": False,
        "diffusion_conv_direct": direct, "vae_conv_direct": direct,
    }  # fmt: skip


@pytest.mark.parametrize("said", [True, False])
def test_direct_convolutions_may_be_said(said: bool, model_dir: Path) -> None:
    """Then neither the kernels nor the backend decide."""
    settings = Settings(diffusion_conv_direct=said, vae_conv_direct=said)
    spec = model_spec(load_catalog(model_dir).get("test"), {}, {}, settings, 1)
    for backend, kernels in (("CPU", ""), ("CPU", "AVX2 f32"), ("CUDA0", "AVX2 f32")):
        settled = spec.settled(backend, kernels)
        assert (settled.diffusion_conv_direct, settled.vae_conv_direct) == (said, said)


def context_flags(fields: str, backend: str, kernels: str = "") -> dict[str, bool]:
    """What sd.cpp is told of a model with these fields; asked in a process that may load the library."""
    code = f"""
from gguf_imagegen.vocabulary.engine import LoadSpec
from gguf_imagegen.engines.sdcpp.library import context_params
made = context_params(LoadSpec("x", {{}}, 1, {fields}), {backend!r}, {kernels!r})
names = (
    "diffusion_flash_attn", "chroma_use_dit_mask", "enable_mmap", "diffusion_conv_direct", "vae_conv_direct"
)
print({{name: getattr(made, name) for name in names}})
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return dict(ast.literal_eval(ran.stdout))


async def test_mapped_files_make_the_same_picture(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting reaches the engine, and the weights are the same."""
    catalog = load_catalog(model_dir)
    entry = catalog.get("test")
    pictures = []
    for mmap in (False, True):
        monkeypatch.setenv("GGUF_IMAGEGEN_MMAP", str(mmap))
        settings = Settings(models_dir=model_dir, threads=1, memory_check=False)
        work = work_for(catalog, entry, settings, Effort(1, 0), "64x64")
        assert work.model.mmap == mmap
        engine = EngineProcess()
        try:
            async for _ in engine.load(work.model):
                pass
            pictures.append((await make(engine, work.picture)).image.data)
        finally:
            await engine.close()
    assert pictures[0] == pictures[1]
    assert context_flags("mmap=True", "CPU")["enable_mmap"]


# -- its parts ----------------------------------------------------------------------------------------


def test_what_is_tried() -> None:
    """What the user says is not, nor what the model does not have."""
    said = Settings(threads=2, flash_attention=False)
    assert factors("sd1", said, 8, huge_pages=False, defaults=PLAIN, kernels="", int8=False) == [
        (Options(diffusion_conv_direct=True),),
        (Options(vae_conv_direct=True),),
    ]
    flux = factors("flux", Settings(), 8, huge_pages=True, defaults=PLAIN, kernels="", int8=False)
    assert (Options(diffusion_conv_direct=True),) not in flux
    assert (Options(flash_attention=True),) in flux


def test_what_is_on_by_default_is_tried_off() -> None:
    """With kernels of ours: they themselves, and what they have turned on."""
    kernels = "AVX2 f32"
    spec = LoadSpec("x", {}, 1).settled("CPU", kernels)
    tried = factors(
        "sd1", Settings(threads=1), 8, huge_pages=False, defaults=spec, kernels=kernels, int8=True
    )
    assert tried == [
        (Options(kernels="int8"), Options(kernels="off")),
        (Options(flash_attention=False),),
        (Options(diffusion_conv_direct=False),),
        (Options(vae_conv_direct=False),),
    ]
    said = Settings(threads=1, kernels="f32", flash_attention=True, vae_conv_direct=False)
    assert factors("flux", said, 8, huge_pages=False, defaults=spec, kernels=kernels, int8=True) == []


def test_thread_counts() -> None:
    """Fewer than all cores: one a physical core, and half."""
    assert thread_counts(8, 8) == [4]
    assert thread_counts(8, 6) == [6, 4]
    assert thread_counts(2, 64) == [1]
    assert thread_counts(1, 1) == []


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal: bool) -> None:
    """On a terminal as in a log: what is tried, and what came of it."""
    speed = Speed(0.5, 0.2, 0.1, 3, b"")
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    with shown(console, 2) as watcher:
        for name, trial in {
            "flash attention": Trial("flash attention", Options(), speed, 0.87, 40.0, KEPT),
            "huge pages": Trial("huge pages", Options(), words="failed: out of [memory]"),
        }.items():
            watcher.trying(name)
            watcher.step(0)
            watcher.step(3)
            watcher.tried(trial)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert "flash attention: 0.500 s a step, 0.87 of the time: faster, kept on" in said
    assert "huge pages: failed: out of [memory]" in said
    assert ("2/2" in said) == terminal


def test_the_workers_malloc_is_told() -> None:
    """Huge pages are asked for beside what the user's own tunables say, which win."""
    assert "GLIBC_TUNABLES" not in worker_environment({})
    assert worker_environment({}, huge_pages=True)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    own = worker_environment({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}, huge_pages=True)
    assert own["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


def test_likeness() -> None:
    """Equal, near, of another size, and flat."""
    ramp = bytes(range(240)) * 4
    assert psnr(ramp, ramp) == SAME
    assert psnr(ramp, bytes(value ^ 1 for value in ramp)) == pytest.approx(48.13, abs=0.01)
    assert psnr(ramp, ramp[:3]) == 0
    assert is_flat(bytes([5, 90, 200]) * 100)
    assert not is_flat(ramp)
