"""Prometheus metrics, read from the events of the jobs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent
from gguf_imagegen.jobs.scheduler import LaneStatus, Scheduler
from gguf_imagegen.pool.lane import Lane

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Observes a scheduler; one registry each, so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._jobs = Counter(
            "imagegen_jobs", "Jobs ended, by outcome", ["outcome", "model"], registry=self.registry
        )
        self._callers = Counter(
            "imagegen_caller_jobs", "Jobs ended, by caller", ["caller", "outcome"], registry=self.registry
        )
        self._step = Histogram(
            "imagegen_seconds_per_step",
            "Seconds per denoising step",
            ["model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._phase = Histogram(
            "imagegen_phase_seconds",
            "Seconds per phase of one image",
            ["phase", "model"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._workers = Counter(
            "imagegen_worker_ends", "Engine processes ended, by reason", ["reason"], registry=self.registry
        )
        self._restarts = Counter(
            "imagegen_worker_restarts",
            "Engine processes lost to a crash or a cancel, to be started again on demand",
            registry=self.registry,
        )
        self._waiting = Gauge("imagegen_queue_depth", "Jobs waiting", registry=self.registry)
        self._running = Gauge("imagegen_jobs_running", "Jobs running", registry=self.registry)
        self._lanes = Gauge(
            "imagegen_lane_status",
            "1 for what a lane does, 0 else",
            ["lane", "status"],
            registry=self.registry,
        )
        self._engines = Gauge(
            "imagegen_engine_info",
            "1 for what a lane's engine computes on, and the kernels of ours that it uses on the CPU",
            ["lane", "backend", "kernels"],
            registry=self.registry,
        )
        self._watched: Sequence[Lane] = ()
        self._loaded = Gauge("imagegen_models_loaded", "Models in memory", registry=self.registry)

    def watch(self, scheduler: Scheduler) -> None:
        """Read the gauges from this scheduler whenever somebody asks."""
        self._waiting.set_function(lambda: scheduler.waiting)
        self._running.set_function(lambda: len(scheduler.running))
        self._loaded.set_function(lambda: sum(len(lane.models) for lane in scheduler.pool.lanes))
        self._watched = scheduler.pool.lanes
        for lane in self._watched:
            for status in get_args(LaneStatus):
                here = self._lanes.labels(lane.name, status)
                here.set_function(partial(_does, scheduler, lane, status))

    def job_event(self, job: Job, event: JobEvent) -> None:
        model = job.plan.entry.id
        match event:
            case ImageReady(timings=timings):
                if timings.steps:
                    self._step.labels(model).observe(timings.sampling_ms / 1000 / timings.steps)
                for phase in ("conditioning", "sampling", "decoding"):
                    self._phase.labels(phase, model).observe(getattr(timings, f"{phase}_ms") / 1000)
            case Ended():
                self._jobs.labels(job.status, model).inc()
                self._callers.labels(job.caller, job.status).inc()

    def worker_ended(self, reason: str) -> None:
        self._workers.labels(reason).inc()
        if reason in ("crashed", "cancelled"):
            self._restarts.inc()

    def text(self) -> bytes:
        self._engines.clear()  # a lane's engine may be another one now
        for lane in self._watched:
            if lane.backend is not None:
                self._engines.labels(lane.name, lane.backend, lane.kernels or "").set(1)
        return generate_latest(self.registry)


def _does(scheduler: Scheduler, lane: Lane, status: LaneStatus) -> bool:
    return scheduler.status_of(lane) == status
