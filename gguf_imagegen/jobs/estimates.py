"""How fast this machine is with each model, from what was measured: the source of every ETA."""

from __future__ import annotations

from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.engine import Generate
from gguf_imagegen.vocabulary.events import Progress, Timings

WEIGHT = 0.3
"""Share of the newest measurement in the running average."""


class Pace:
    """Running averages per model: seconds per step and megapixel, and seconds around the steps."""

    def __init__(self) -> None:
        self.measured = 0
        """How often something was learned, so that whoever keeps an estimate knows when it is old."""
        self._step: dict[str, float] = {}
        self._around: dict[str, float] = {}

    def learn(self, plan: Plan, timings: Timings) -> None:
        if plan.generate is None:
            return
        self.measured += 1
        model, megapixels = plan.entry.id, _megapixels(plan.generate)
        if timings.steps:
            per_step = timings.sampling_ms / 1000 / timings.steps / megapixels
            self._step[model] = _mix(self._step.get(model), per_step)
        around = (timings.total_ms - timings.sampling_ms) / 1000
        self._around[model] = _mix(self._around.get(model), around)

    def image_seconds(self, plan: Plan) -> float | None:
        """Expected seconds for one image of this plan; None before anything was measured."""
        spec, per_step = plan.generate, self._step.get(plan.entry.id)
        if per_step is None or spec is None:
            return None
        steps = spec.sampling_steps + (spec.hires.steps if spec.hires else 0)
        return per_step * _megapixels(spec) * steps + self._around.get(plan.entry.id, 0.0)

    def job_seconds(self, plan: Plan, progress: Progress | None = None, done: int = 0) -> float | None:
        """Expected seconds until the job's end, with `done` images made and `progress` in the next."""
        image = self.image_seconds(plan)
        done = max(done, progress.index) if progress else done  # several may be decoded at the end
        if progress is not None and progress.phase == "sampling" and progress.seconds_per_step:
            rest = progress.seconds_per_step * (progress.steps - progress.step)
            whole = image if image is not None else progress.seconds_per_step * progress.steps
            return rest + self._around.get(plan.entry.id, 0.0) + whole * max(0, plan.n - done - 1)
        return None if image is None else image * (plan.n - done)


def _mix(old: float | None, new: float) -> float:
    return new if old is None else old + WEIGHT * (new - old)


def _megapixels(spec: Generate) -> float:
    return spec.width * spec.height / 1e6
