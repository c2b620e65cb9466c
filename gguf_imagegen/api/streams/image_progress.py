"""How far each image of a job is, as llama-box tells it, and how many partial images it had."""

from __future__ import annotations

from typing import Any

from gguf_imagegen.jobs.job import ImageReady, Job, JobEvent, PreviewReady, image_fraction
from gguf_imagegen.vocabulary.events import Loaded, Loading, PhaseChanged, Progress


class ProgressItems:
    """llama-box progress items, the highest so far for each image."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._items: dict[int, dict[str, Any]] = {}

    def item(self, index: int) -> dict[str, Any]:
        return self._items.get(index) or self._make(index, 0, self._steps, 0.0, "queued")

    def take(self, event: JobEvent) -> dict[str, Any] | None:
        """The item after this event, None if the event moves no image."""
        match event:
            case Loading() | Loaded():
                return self._set(len(self._job.images), "loading")
            case PhaseChanged():
                return self._set(event.index, event.phase)
            case Progress(phase="sampling" | "hires"):
                done = min(99.0, round(100 * image_fraction(event, self._job.plan), 2))
                return self._set(event.index, event.phase, done, event.step, event.steps)
            case Progress():
                return self._set(event.index, event.phase)
            case _:
                return None

    def final(self, event: ImageReady) -> dict[str, Any]:
        steps = event.timings.steps
        item = self._make(event.index, steps, steps, 100.0, "done")
        return {**item, "finish_reason": "stop", "seed": event.seed}

    @property
    def _steps(self) -> int:
        return self._job.plan.sampling_steps

    def _set(
        self, index: int, phase: str, progress: float = 0.0, step: int = 0, steps: int = 0
    ) -> dict[str, Any]:
        old = self.item(index)
        if progress < old["progress"] or not steps:
            progress, step, steps = old["progress"], old["progressed_steps"], old["progress_steps"]
        self._items[index] = self._make(index, step, steps, progress, phase)
        return self._items[index]

    def _make(self, index: int, step: int, steps: int, progress: float, phase: str) -> dict[str, Any]:
        return {
            "index": index,
            "object": "image.chunk",
            "progressed_steps": step,
            "progress_steps": steps,
            "progress": progress,
            "phase": phase,
            "finish_reason": None,
        }


class PartialCounter:
    """`partial_image_index` counts from 0 for each image; of a step that is made again it is the same."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._steps: dict[int, list[int]] = {}

    def is_due(self, preview: PreviewReady) -> bool:
        """Whether its step was asked for, and not sent before: a job may be begun again."""
        had = self._steps.get(preview.index, ())
        return preview.step in self._job.plan.partial_steps and preview.step not in had

    def number(self, preview: PreviewReady) -> int:
        steps = self._steps.setdefault(preview.index, [])
        if preview.step not in steps:
            steps.append(preview.step)
        return steps.index(preview.step)
