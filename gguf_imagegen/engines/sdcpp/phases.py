"""What the engine is doing, told from the only two things it says: log lines and unlabelled progress.

stable-diffusion.cpp reports tensor loading, VAE tiles and denoising steps through one callback without
saying which it is; the log line before tells them apart. Pure: feed it, send on what it returns.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from pathlib import PurePath
from typing import Final

from gguf_imagegen.vocabulary.events import Loading, Phase, PhaseChanged, Progress, Timings

PhaseEvent = Loading | PhaseChanged | Progress

LOG_WARN: Final = 2  # sd_log_level_t
LOG_ERROR: Final = 3
STEP_PHASES: Final[frozenset[Phase]] = frozenset({"sampling", "hires"})
LOADING: Final = "loading tensors from "
VERSION: Final = "Version: "
BEGINNINGS: Final[tuple[tuple[str, Phase], ...]] = (
    (LOADING, "loading"),
    ("encode_first_stage completed", "conditioning"),
    ("generating image: ", "sampling"),
    ("hires fix: ", "hires"),
    ("decoding ", "decoding"),
    ("upscaling from ", "upscaling"),
)
IMAGE_OF: Final = re.compile(r"generating image: (\d+)/")
HIRES_PLAN: Final = re.compile(r"hires fix: .*sigma_sched_size=(\d+)")
SOURCE_LINE: Final = re.compile(r"^[\w.+-]+:\d+ +- ")
QUOTED_PATH: Final = re.compile(r"'/(?:[^'/\n]*/)*([^'/\n]+)'")
PATH: Final = re.compile(r"(?<![\w./])/(?:[^\s/'\":]+/)*([^\s/'\":]+)")
OUT_OF_MEMORY: Final = re.compile(
    r"out of memory|failed to allocate|buffer allocation failed|too less memory|bad_alloc"
    r"|alloc \S*\s?(params|compute|runtime|partial).*failed|ErrorOutOfDeviceMemory",
    re.IGNORECASE,
)


class PhaseMachine:
    """The phases of `count` images from `index` on, or with `index` None of the loading of a model.

    Images of one call are sampled one after the other, and then decoded. `encodes`: the request has an
    image that must be encoded first, which the log tells only afterwards.
    """

    def __init__(
        self,
        index: int | None = None,
        count: int = 1,
        *,
        encodes: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.index = self._first = index
        self._count = count
        self.phase: Phase | None = None
        self.family = ""
        self.steps = 0  # of the phase, as far as the engine has told
        self._before_sampling: Phase = "encoding" if encodes else "conditioning"
        self._what = ""
        self._last_step = -1
        self._steps_run = 0
        self._hires_steps = 0
        self._clock = clock
        self._began = self._entered = clock()
        self._seconds: dict[Phase, float] = {}

    def log(self, line: str) -> list[PhaseEvent]:
        """A line of the engine's log, of any level."""
        text = SOURCE_LINE.sub("", line).strip()
        if text.startswith(VERSION):
            self.family = text.removeprefix(VERSION)
        if text.startswith(LOADING):
            self._what = PurePath(text.removeprefix(LOADING)).name
        if plan := HIRES_PLAN.match(text):
            self._hires_steps = int(plan[1]) - 1
        if (image := IMAGE_OF.match(text)) and self._first is not None and int(image[1]) > 1:
            return self._enter("sampling", self._first + int(image[1]) - 1)
        if text.startswith("sampling using "):
            return self._enter(self._before_sampling)
        for beginning, phase in BEGINNINGS:
            if text.startswith(beginning):
                return self._enter(phase)
        return []

    def progress(self, step: int, steps: int, seconds: float) -> list[PhaseEvent]:
        """A call of the progress callback; `seconds` is the engine's average per step."""
        if self.phase is None or not self._advances(step, steps):
            return []
        self._last_step, self.steps = step, steps
        if self.phase == "loading":
            return [Loading(self._what, step, steps)]
        if self.phase in STEP_PHASES and step > 0:
            self._steps_run += 1
        if self.index is None:
            return []
        return [Progress(self.index, self.phase, step, steps, seconds if step else 0.0)]

    def timings(self) -> Timings:
        """Measured up to now, the mean of the images."""
        seconds = dict(self._seconds)
        now = self._clock()
        if self.phase is not None:
            seconds[self.phase] = seconds.get(self.phase, 0.0) + now - self._entered
        ms = 1000 / self._count
        return Timings(
            conditioning_ms=ms * (seconds.get("encoding", 0.0) + seconds.get("conditioning", 0.0)),
            sampling_ms=ms * (seconds.get("sampling", 0.0) + seconds.get("hires", 0.0)),
            decoding_ms=ms * seconds.get("decoding", 0.0),
            total_ms=ms * (now - self._began),
            steps=self._steps_run // self._count,
        )

    def _enter(self, phase: Phase, index: int | None = None) -> list[PhaseEvent]:
        if index is not None:
            self.index = index
        elif phase == self.phase:
            return []
        now = self._clock()
        if self.phase is not None:
            self._seconds[self.phase] = self._seconds.get(self.phase, 0.0) + now - self._entered
        self.phase, self._entered = phase, now
        self._last_step, self.steps = -1, 0
        return [] if self.index is None else [PhaseChanged(self.index, phase)]

    def _advances(self, step: int, steps: int) -> bool:
        """Two-stage samplers repeat (0, steps); a pixel upscale tiles the VAE in the middle of "hires"."""
        if self.phase == "hires" and steps != self._hires_steps:
            return False
        return self._last_step < step <= steps


def bare_names(text: str, known: Iterable[PurePath] = ()) -> str:
    """`text` with every path reduced to the file's name: no local path leaves the worker.

    Absolute paths are found by their look; those that are relative or hold blanks only if they are `known`.
    """
    for path in known:
        text = text.replace(str(path), path.name)
    return PATH.sub(r"\1", QUOTED_PATH.sub(r"'\1'", text))


def is_out_of_memory(text: str) -> bool:
    return OUT_OF_MEMORY.search(text) is not None
