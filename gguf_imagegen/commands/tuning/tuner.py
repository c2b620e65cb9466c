"""The search: each option by itself, from the defaults on, and what is faster is kept for the next ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from msgspec.structs import replace

from gguf_imagegen.commands.tuning.candidates import Factor
from gguf_imagegen.commands.tuning.measure import Effort, Speed, measure, warm_up
from gguf_imagegen.engines.making import make
from gguf_imagegen.pictures.nearness import is_flat, psnr
from gguf_imagegen.pool.options import Options
from gguf_imagegen.vocabulary.engine import Decoder, Engine, Generate, LoadSpec
from gguf_imagegen.vocabulary.errors import GenerationFailed, ImagegenError
from gguf_imagegen.vocabulary.events import Loaded

LEAST_GAIN: Final = 0.03
"""Part of a picture's time that an option must save to be worth anything."""
LEAST_PSNR: Final = 30.0
"""Decibels between a candidate's picture and that of the defaults, of the same seed."""
KEPT: Final = "faster, kept on"
"""What is said of a candidate that those after it are tried with."""
PATIENCE: Final = 2.0
PATIENCE_SECONDS: Final = 5.0
"""A candidate whose first picture takes so many times longer than that of the defaults is given up."""


@dataclass(frozen=True)
class Work:
    """What is measured: a model as it is loaded by default, a picture, and the steps that users ask of it.

    `tiled` says whether a backend with such kernels must decode this picture in tiles, for lack of memory,
    `tiny` whether the model has a tiny decoder beside the one that is its default.
    """

    model: LoadSpec
    picture: Generate
    steps: int
    effort: Effort
    tiled: Callable[[str, str], bool]
    tiny: bool = False


@dataclass(frozen=True)
class Trial:
    """One candidate: its speed or why it has none, and what became of it, in `words`.

    `ratio` is the time of a picture against the defaults', `psnr` the nearness of the pictures in dB.
    """

    name: str
    options: Options
    speed: Speed | None = None
    ratio: float | None = None
    psnr: float | None = None
    words: str = ""


@dataclass(frozen=True)
class Outcome:
    """`options` are the winner's; seconds are those of a picture; `tiled_decode` is None if that failed.

    `drift` is how much longer the defaults took at the end than at first, as a part; None if not measured.
    `tiny` is the tiny decoder with the full one's best options, never taken, for it draws another picture.
    """

    trials: tuple[Trial, ...]
    options: Options
    default_seconds: float
    tuned_seconds: float
    tiled_decode: float | None
    backend: str
    kernels: str
    drift: float | None
    tiny: Trial | None = None


class Watcher(Protocol):
    """Told what happens, for a display."""

    def trying(self, name: str) -> None: ...

    def step(self, done: int) -> None: ...

    def tried(self, trial: Trial) -> None: ...


@dataclass(frozen=True)
class _Run:
    speed: Speed
    warm_up: float
    tiled_decode: float | None
    backend: str
    kernels: str


class Tuner:
    """Each candidate has an engine of its own, which is gone before the next one starts."""

    def __init__(
        self,
        work: Work,
        make_engine: Callable[[], Engine],
        watcher: Watcher,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._work = work
        self._patience = patience
        self._make_engine = make_engine
        self._watcher = watcher
        self._trials: list[Trial] = []

    async def tune(self, factors: list[Factor]) -> Outcome:
        """Try them all; an ImagegenError if not even the defaults work, but never one of a candidate."""
        self._watcher.trying("defaults")
        default = await self._run(Options(), first=True)
        if is_flat(default.speed.rgb):
            raise GenerationFailed("The picture made with the defaults is flat: nothing can be compared.")
        self._tell(Trial("defaults", Options(), default.speed, 1.0, words="to compare with"))
        first = self._seconds(default.speed)
        best, seconds = Options(), first
        for factor in factors:
            base, least = best, seconds * (1 - LEAST_GAIN)
            for change in factor:
                trial, found = await self._try(base.also(change), change, default, least)
                if found is not None and found < seconds:
                    best, seconds = trial.options, found
        tiny = await self._tiny(best, default) if self._work.tiny else None
        again = await self._again(default) if factors else None
        default_seconds = first if again is None else min(first, again)
        if seconds > default_seconds * (1 - LEAST_GAIN):
            best = Options()
        return Outcome(
            trials=tuple(self._trials),
            options=best,
            default_seconds=default_seconds,
            tuned_seconds=seconds if best != Options() else default_seconds,
            tiled_decode=default.tiled_decode,
            backend=default.backend,
            kernels=default.kernels,
            drift=None if again is None else again / first - 1,
            tiny=tiny,
        )

    async def _try(
        self, options: Options, change: Options, default: _Run, least: float
    ) -> tuple[Trial, float | None]:
        """Seconds of a picture if the candidate is to be kept on, which it is below `least`."""
        self._watcher.trying(change.words)
        limit = PATIENCE * default.warm_up + self._patience
        try:
            speed = (await self._run(options, limit=limit)).speed
        except asyncio.TimeoutError:
            words = f"given up: its first picture took over {limit:.1f} s"
            return self._tell(Trial(change.words, options, words=words)), None
        except ImagegenError as exc:
            return self._tell(Trial(change.words, options, words=f"failed: {exc}")), None
        seconds, nearness = self._seconds(speed), psnr(speed.rgb, default.speed.rgb)
        if is_flat(speed.rgb):
            words = "its picture is flat"
        elif nearness < LEAST_PSNR:
            words = "its picture is another"
        else:
            words = KEPT if seconds <= least else "not faster"
        ratio = seconds / self._seconds(default.speed)
        trial = self._tell(Trial(change.words, options, speed, ratio, nearness, words))
        return trial, seconds if words == KEPT else None

    async def _tiny(self, best: Options, default: _Run) -> Trial:
        """The tiny decoder; a picture of it that is flat is told as a failure."""
        name = "tiny decoder"
        self._watcher.trying(name)
        try:
            speed = (await self._run(best, decoder="tiny")).speed
        except ImagegenError as exc:
            return self._tell(Trial(name, best, words=f"failed: {exc}"))
        if is_flat(speed.rgb):
            return self._tell(Trial(name, best, words="its picture is flat"))
        ratio = self._seconds(speed) / self._seconds(default.speed)
        nearness = psnr(speed.rgb, default.speed.rgb)
        return self._tell(Trial(name, best, speed, ratio, nearness, "another picture, yours to choose"))

    async def _again(self, default: _Run) -> float | None:
        """The defaults once more, as the machine may have changed meanwhile; None if they fail."""
        name = "defaults, again"
        self._watcher.trying(name)
        try:
            speed = (await self._run(Options())).speed
        except ImagegenError as exc:
            self._tell(Trial(name, Options(), words=f"failed: {exc}"))
            return None
        ratio = self._seconds(speed) / self._seconds(default.speed)
        nearness = psnr(speed.rgb, default.speed.rgb)
        self._tell(Trial(name, Options(), speed, ratio, nearness, "to be sure"))
        return self._seconds(speed)

    async def _run(
        self,
        options: Options,
        *,
        limit: float | None = None,
        first: bool = False,
        decoder: Decoder | None = None,
    ) -> _Run:
        """Load, warm up, measure; asyncio.TimeoutError if the first picture takes longer than `limit`.

        The `first` run finds the machine cold: it is measured twice, and the faster counts.
        """
        engine = self._make_engine()
        try:
            backend, kernels = "", ""
            model = options.applied(self._work.model)
            async for event in engine.load(replace(model, decoder=decoder or model.decoder)):
                if isinstance(event, Loaded):
                    backend, kernels = event.backend, event.kernels
            tiled = self._work.picture.vae_tiling or self._work.tiled(backend, kernels)
            spec = replace(self._work.picture, vae_tiling=tiled)
            self._watcher.step(0)
            warmed = await asyncio.wait_for(make(engine, warm_up(spec)), limit)
            speed = await measure(engine, spec, self._work.effort, self._watcher.step)
            if first:
                again = await measure(engine, spec, self._work.effort, self._watcher.step)
                speed = min(speed, again, key=self._seconds)
            tiled_decode = await self._tiled_decode(engine, spec) if first else None
            return _Run(speed, warmed.timings.total_ms / 1000, tiled_decode, backend, kernels)
        finally:
            await engine.close()

    async def _tiled_decode(self, engine: Engine, spec: Generate) -> float | None:
        try:
            return (await make(engine, replace(warm_up(spec), vae_tiling=True))).decode
        except ImagegenError:
            return None

    def _seconds(self, speed: Speed) -> float:
        return speed.picture(self._work.steps)

    def _tell(self, trial: Trial) -> Trial:
        self._trials.append(trial)
        self._watcher.tried(trial)
        return trial
