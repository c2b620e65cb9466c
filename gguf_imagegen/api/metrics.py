"""Prometheus metrics, read from the events of the jobs."""

from __future__ import annotations

from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent
from gguf_imagegen.jobs.scheduler import LaneStatus, Scheduler
from gguf_imagegen.pool.ray.cluster import Cluster, NodeStatus

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Observes a scheduler; one registry each, so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        count, show = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        measure = partial(Histogram, registry=self.registry, buckets=SECONDS)
        self._jobs = count("imagegen_jobs", "Jobs ended, by outcome", ["outcome", "model"])
        self._callers = count("imagegen_caller_jobs", "Jobs ended, by caller", ["caller", "outcome"])
        self._step = measure("imagegen_seconds_per_step", "Seconds per denoising step", ["model"])
        self._phase = measure("imagegen_phase_seconds", "Seconds per phase of one image", ["phase", "model"])
        self._workers = count("imagegen_worker_ends", "Engine processes ended, by reason", ["reason"])
        self._restarts = count(
            "imagegen_worker_restarts",
            "Engine processes lost to a crash or a cancel, to be started again on demand",
        )
        self._waiting = show("imagegen_queue_depth", "Jobs waiting")
        self._running = show("imagegen_jobs_running", "Jobs running")
        self._loaded = show("imagegen_models_loaded", "Models in memory")
        self._lanes = show("imagegen_lane_status", "1 for what a lane does, 0 else", ["lane", "status"])
        self._engines = show(
            "imagegen_engine_info",
            "1 for what a lane's engine computes on, and the kernels of ours that it uses on the CPU",
            ["lane", "backend", "kernels"],
        )
        self._wanted = show("imagegen_lanes_wanted", "Lanes that would have work: jobs waiting and running")
        self._nodes = show("imagegen_cluster_nodes", "Nodes of the cluster, by status", ["status"])
        self._joined = show("imagegen_cluster_joined", "1 while the head of the cluster answers")
        self._lost = show("imagegen_cluster_lanes_lost", "Lanes lost since the start, by why", ["why"])
        self._late = show("imagegen_cluster_late_events", "Events of attempts that were over")
        self._scheduler: Scheduler | None = None
        self._cluster: Cluster | None = None

    def watch(self, scheduler: Scheduler, cluster: Cluster | None) -> None:
        """Read the gauges from this scheduler, and from the cluster, whenever somebody asks."""
        self._scheduler, self._cluster = scheduler, cluster
        self._wanted.set_function(lambda: scheduler.waiting + len(scheduler.running))
        self._waiting.set_function(lambda: scheduler.waiting)
        self._running.set_function(lambda: len(scheduler.running))
        self._loaded.set_function(lambda: sum(len(lane.models) for lane in scheduler.pool.lanes))

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
        if self._scheduler is not None:
            self._read_lanes(self._scheduler)
        if self._cluster is not None:
            self._read_cluster(self._cluster)
        return generate_latest(self.registry)

    def _read_lanes(self, scheduler: Scheduler) -> None:
        """Lanes come and go, and a lane's engine may be another one now."""
        self._lanes.clear()
        self._engines.clear()
        for lane in scheduler.pool.lanes:
            for status in get_args(LaneStatus):
                self._lanes.labels(lane.name, status).set(scheduler.status_of(lane) == status)
            if lane.backend is not None:
                self._engines.labels(lane.name, lane.backend, lane.kernels or "").set(1)

    def _read_cluster(self, cluster: Cluster) -> None:
        self._nodes.clear()
        for status in get_args(NodeStatus):
            self._nodes.labels(status).set(sum(node.status == status for node in cluster.nodes.values()))
        self._joined.set(cluster.status == "joined")
        self._late.set(cluster.late)
        for why, count in cluster.losses.items():
            self._lost.labels(why).set(count)
