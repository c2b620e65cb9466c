"""The log of the jobs: a line when one is taken, with who asked for what, and a line at its end."""

from __future__ import annotations

import json
import logging

from gguf_imagegen.jobs.job import Ended, Job, JobEvent, Queued
from gguf_imagegen.machine.logs import DISCREET, one_line
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.errors import Cancelled

log = logging.getLogger(__name__)
PROMPT_CHARACTERS = 60


class JobLog:
    """Observes a scheduler; with `prompts` the lines on stderr have the first words of the prompts."""

    def __init__(self, *, prompts: bool) -> None:
        self._prompts = prompts

    def job_event(self, job: Job, event: JobEvent) -> None:
        match event:
            case Queued() if len(job.events) == 1:
                self._begin(job)
            case Ended():
                log.info("job %s %s", job.id, _end(job))

    def _begin(self, job: Job) -> None:
        who = f"job {job.id} of {job.sender.words}"
        words, discreet = _words(job.plan, prompt=self._prompts), _words(job.plan, prompt=False)
        log.info("%s: %s", who, words, extra={DISCREET: f"{who}: {discreet}"})


def _words(plan: Plan, *, prompt: bool) -> str:
    spec, (width, height) = plan.generate, plan.delivered
    words = [plan.operation, plan.entry.name]
    if prompt and spec and spec.prompt:
        words.append(first_words(spec.prompt))
    words.append(f"{width}x{height}" if plan.n == 1 else f"{plan.n} of {width}x{height}")
    if spec:
        words += [f"{spec.steps} steps", f"cfg {spec.cfg_scale:g}", f"seed {spec.seed}"]
    return ", ".join(words)


def first_words(prompt: str) -> str:
    """In quotes and on one line."""
    text = " ".join(prompt[: 4 * PROMPT_CHARACTERS].split())
    short = text if len(text) <= PROMPT_CHARACTERS else f"{text[:PROMPT_CHARACTERS].rstrip()}…"
    return one_line(json.dumps(short, ensure_ascii=False))


def _end(job: Job) -> str:
    ended = job.ended_at or job.created
    began = job.started_at or ended
    seconds = f"{ended - began:.1f} s after {began - job.created:.1f} s in the queue"
    if job.error is None:
        return f"succeeded in {seconds}"
    if isinstance(job.error, Cancelled):
        return f"was cancelled in {seconds}: {job.error}"
    return f"failed in {seconds}: {job.error.code}: {job.error}"
