"""How fast this machine is with each model, from what was measured: the source of every ETA and dry run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import harmonic_mean
from typing import Any

from msgspec import Struct

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import Progress, Timings

WEIGHT = 0.3
"""Share of the newest measurement in the running average."""
MOST_ALIKE = 1000
"""Kinds of work whose own pace is remembered."""


@dataclass(frozen=True)
class _Own:
    """Seconds of a step and around the steps, of work that was alike in all that costs time."""

    step: float
    around: float
    measured: int = 1

    def then(self, step: float, around: float) -> _Own:
        """The second one replaces the first, which filled caches; later ones count by their weight."""
        if self.measured == 1:
            return _Own(step, around, 2)
        return _Own(_mix(self.step, step), _mix(self.around, around), self.measured + 1)


class Measured(Struct, frozen=True):
    """What a `Pace` knows, as it is stored: kind of lane, model and seconds; and of work that was alike."""

    step: list[tuple[str, str, float]] = []
    around: list[tuple[str, str, float]] = []
    load: list[tuple[str, str, float]] = []
    own: list[tuple[Any, float, float, int]] = []


class Pace:
    """Running averages per kind of lane and model: seconds per step and megapixel, and around the steps.

    Work that is alike in size and in all else that costs time has a pace of its own, which goes before.
    `kinds` are those of all lanes, one each. Where no kind is named, the time is what all lanes together take
    on average, those that were measured.
    """

    def __init__(self, kinds: Sequence[str] = ("auto",)) -> None:
        self.measured = 0
        """How often something was learned, so that whoever keeps an estimate knows when it is old."""
        self.kinds = kinds
        self._step: dict[tuple[str, str], float] = {}
        self._around: dict[tuple[str, str], float] = {}
        self._own: OrderedDict[Hashable, _Own] = OrderedDict()
        self._load: dict[tuple[str, str], float] = {}

    def known(self) -> Measured:
        """All that was learned."""
        return Measured(
            [(*key, seconds) for key, seconds in self._step.items()],
            [(*key, seconds) for key, seconds in self._around.items()],
            [(*key, seconds) for key, seconds in self._load.items()],
            [(key, own.step, own.around, own.measured) for key, own in self._own.items()],
        )

    def recall(self, known: Measured) -> None:
        """What an earlier run of the server learned; what this one has learned goes before."""
        for mine, theirs in (
            (self._step, known.step), (self._around, known.around), (self._load, known.load),
        ):  # fmt: skip
            for kind, name, seconds in theirs:
                mine.setdefault((kind, name), seconds)
        for key, step, around, measured in known.own[-MOST_ALIKE:]:
            self._own.setdefault(_hashable(key), _Own(step, around, measured))
        self.measured += 1

    def learn_load(self, entry: Entry, seconds: float, kind: str = "auto") -> None:
        """A model was loaded in so many seconds."""
        self._load[kind, entry.name] = seconds

    def load_seconds(self, entry: Entry) -> float | None:
        """Expected seconds to load a model that is not in memory; None before its first load."""
        found = [self._load[kind, entry.name] for kind in self.kinds if (kind, entry.name) in self._load]
        return harmonic_mean(found) if found else None

    def learn(self, plan: Plan, timings: Timings, kind: str = "auto") -> None:
        if plan.generate is None:
            return
        self.measured += 1
        key, megapixels = (kind, plan.entry.id), _megapixels(plan.generate)
        if timings.steps:
            per_step = timings.sampling_ms / 1000 / timings.steps / megapixels
            self._step[key] = _mix(self._step.get(key), per_step)
        around = (timings.total_ms - timings.sampling_ms) / 1000
        self._around[key] = _mix(self._around.get(key), around)
        if timings.steps:
            self._learn_own((kind, *_costs(plan)), timings.sampling_ms / 1000 / timings.steps, around)

    def _learn_own(self, key: Hashable, step: float, around: float) -> None:
        known = self._own.pop(key, None)
        self._own[key] = known.then(step, around) if known else _Own(step, around)
        if len(self._own) > MOST_ALIKE:
            self._own.popitem(last=False)

    def image_seconds(self, plan: Plan, kind: str | None = None) -> float | None:
        """Expected seconds for one image of this plan; None before anything was measured."""
        kinds = self.kinds if kind is None else (kind,)
        known = [seconds for each in kinds if (seconds := self._on(each, plan)) is not None]
        return harmonic_mean(known) if known else None

    def job_seconds(
        self, plan: Plan, progress: Progress | None = None, done: int = 0, kind: str | None = None
    ) -> float | None:
        """Expected seconds until the job's end, with `done` images made and `progress` in the next."""
        image = self.image_seconds(plan, kind)
        done = max(done, progress.index) if progress else done  # several may be decoded at the end
        if progress is not None and progress.phase == "sampling" and progress.seconds_per_step:
            rest = progress.seconds_per_step * (progress.steps - progress.step)
            whole = image if image is not None else progress.seconds_per_step * progress.steps
            around = self._around.get((kind or self.kinds[0], plan.entry.id), 0.0)
            return rest + around + whole * max(0, plan.n - done - 1)
        return None if image is None else image * (plan.n - done)

    def _on(self, kind: str, plan: Plan) -> float | None:
        key, spec = (kind, plan.entry.id), plan.generate
        per_step = self._step.get(key)
        if per_step is None or spec is None:
            return None
        steps = spec.sampling_steps + (spec.hires.steps if spec.hires else 0)
        if own := self._own.get((kind, *_costs(plan))):
            return own.step * steps + own.around
        return per_step * _megapixels(spec) * steps + self._around.get(key, 0.0)


def _costs(plan: Plan) -> tuple[Hashable, ...]:
    """All but the number of steps on which the time of a picture depends."""
    spec = plan.spec
    hires = spec.hires and (spec.hires.width, spec.hires.height, spec.hires.steps, spec.steps)
    return (
        plan.entry.name, plan.entry.decoder, spec.width, spec.height, hires, spec.sampler, spec.step_cache,
        spec.cfg_scale == 1, spec.image_cfg_scale == spec.cfg_scale, spec.vae_tiling,
        spec.init_image is not None, len(spec.ref_images), spec.control_image is not None,
    )  # fmt: skip


def _hashable(key: object) -> Hashable:
    """A key as it was before it became JSON."""
    return tuple(map(_hashable, key)) if isinstance(key, list | tuple) else key


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)


def _megapixels(spec: Generate) -> float:
    return spec.width * spec.height / 1e6
