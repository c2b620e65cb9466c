"""How fast this machine is with each model, from what was measured: the source of every ETA."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import harmonic_mean

from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import Progress, Timings

WEIGHT = 0.3
"""Share of the newest measurement in the running average."""


class Pace:
    """Running averages per kind of lane and model: seconds per step and megapixel, and around the steps.

    `kinds` are those of all lanes, one each. Where no kind is named, the time is what all lanes together take
    on average, those that were measured.
    """

    def __init__(self, kinds: Sequence[str] = ("auto",)) -> None:
        self.measured = 0
        """How often something was learned, so that whoever keeps an estimate knows when it is old."""
        self._kinds = kinds
        self._step: dict[tuple[str, str], float] = {}
        self._around: dict[tuple[str, str], float] = {}

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

    def image_seconds(self, plan: Plan, kind: str | None = None) -> float | None:
        """Expected seconds for one image of this plan; None before anything was measured."""
        kinds = self._kinds if kind is None else (kind,)
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
            around = self._around.get((kind or self._kinds[0], plan.entry.id), 0.0)
            return rest + around + whole * max(0, plan.n - done - 1)
        return None if image is None else image * (plan.n - done)

    def _on(self, kind: str, plan: Plan) -> float | None:
        key, spec = (kind, plan.entry.id), plan.generate
        per_step = self._step.get(key)
        if per_step is None or spec is None:
            return None
        steps = spec.sampling_steps + (spec.hires.steps if spec.hires else 0)
        return per_step * _megapixels(spec) * steps + self._around.get(key, 0.0)


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)


def _megapixels(spec: Generate) -> float:
    return spec.width * spec.height / 1e6
