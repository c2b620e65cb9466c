"""One server's models, queue and results: what the API, the one-shot command and the tests hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.jobs.job import Job, JobEvent, Observer
from gguf_imagegen.jobs.ledger import Ledger, Past
from gguf_imagegen.jobs.pixels import Pixels
from gguf_imagegen.jobs.recovery import Recovery
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.jobs.state import State
from gguf_imagegen.jobs.ticket import Repeat, Ticket
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.machine.devices import Device, make_devices
from gguf_imagegen.planning.abilities import require_able
from gguf_imagegen.planning.bounds import within
from gguf_imagegen.planning.plan import Operation, Sketch, sketch
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import Caller, Sender
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import ImagegenError, QueueFull

log = logging.getLogger(__name__)

CANCEL_AGAIN = 5.0
"""Seconds after which a cancellation was lost: `asyncio.wait_for` may swallow one before Python 3.12."""
SWEEP = 30.0
"""Seconds between two looks for what has expired."""


class Service:
    """Takes requests and has them done.

    `make_engine` gives an engine that is not started yet; `devices` are names as the setting has them, None
    for the setting itself. Pictures go to `settings.output_dir`, else to the state folder, which is this
    server's alone; without either they are kept for a time only. Jobs are in the ledger of the state folder;
    those of an earlier run are `returned` with their tickets before `knows_the_past` is set.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        default_model: str,
        make_engine: Callable[[], Engine] | None = None,
        *,
        devices: Sequence[str] | None = None,
        kept: State | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.settings = settings
        self.catalog = catalog
        self.default_model = default_model
        """The name of the model of requests that name none; AUTOMATIC1111's options change it."""
        lanes = make_devices(
            devices or settings.devices, settings.cpu_lanes, settings.threads, usable_cores()
        )
        self.pool = Pool(catalog, settings, partial(_make_engine, settings, make_engine), lanes)
        self.results = _results(settings, kept)
        self._ledger = kept.ledger if kept else None
        store = self._ledger.store if self._ledger else None
        self.scheduler = Scheduler(settings, self.pool, self.results, self._tell, store)
        self.pixels = Pixels(self._pixels_held)
        self.returned: Callable[[Job, Ticket], None] = lambda job, ticket: None
        self.knows_the_past = asyncio.Event()
        self._observers = (*observers, self._ledger.note) if self._ledger else observers

    @property
    def default(self) -> Entry:
        return self.catalog.get(self.default_model)

    def model(self, name: str | None) -> Entry:
        """The named model, or the default one."""
        return self.catalog.get(name) if name else self.default

    async def submit(
        self,
        request: ImageRequest,
        operation: Operation,
        warnings: list[str],
        sender: Sender | None = None,
        *,
        lasting: bool = False,
        repeat: Repeat | None = None,
    ) -> Job:
        """Queue what a request asks for; all that can be refused is refused before a picture is decoded.

        A `lasting` job goes on whether anybody waits for it or not, over restarts of the server too; `repeat`
        is how a repeated request is known after one.
        """
        sender = sender or Sender()
        self.check_room(sender.caller)
        entry = self.model(request.model)
        self.catalog.require_on_disk(entry)
        self.scheduler.check_engine(None if operation == "upscale" else entry)
        settings = within(self.settings, sender.caller.bounds)
        sketched = await asyncio.to_thread(self._sketch, request, entry, operation, warnings, settings)
        plan = await self.pixels.in_turn(sketched.memory, sketched.plan)
        self.check_room(sender.caller)
        job = Job(plan, sender, lasting=lasting)
        await self._accept(job, request, repeat)
        return job

    def check_room(self, caller: Caller) -> None:
        """Raise what `submit` would raise for want of room, before work is put into a request."""
        self.scheduler.check_room()
        most = caller.bounds.jobs
        if most is None:
            return
        jobs = (*self.scheduler.jobs.values(), *self.scheduler.arriving.values())
        own = sum(not job.ended and job.caller == caller.name for job in jobs)
        if own >= most:
            raise QueueFull(
                f"{own} jobs of {caller.name} wait or run, and it may have {most} at once; try again later",
                retry_after=5,
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work through the queue, that of earlier runs first; at the end cancel what is left."""
        works = (self._remember(), self.scheduler.run(), self._sweep())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            if not self.scheduler.draining:
                await self.scheduler.drain(0)
            while not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=CANCEL_AGAIN)
            self.results.close()
            if self._ledger is not None:
                await self._ledger.close()

    async def _accept(self, job: Job, request: ImageRequest, repeat: Repeat | None) -> None:
        """Queue a job that is stored, if anything is."""
        if self._ledger is None:
            return self.scheduler.submit(job)
        self.scheduler.arriving[job.id] = job
        try:
            await self._ledger.accept(job, request, repeat)
        finally:
            del self.scheduler.arriving[job.id]
        try:
            self.scheduler.submit(job)
        except ImagegenError:
            self._ledger.forget(job)
            raise

    async def _remember(self) -> None:
        """Go on where the last run of the server was ended; later give up what nobody came back for."""
        if self._ledger is not None:
            try:
                await self._read_past(self._ledger)
            except Exception:  # the server must work on without its past; the log has the trace
                log.exception("internal error while the journal was read")
        self.knows_the_past.set()
        await asyncio.sleep(self.settings.return_time)
        for job in [job for job in self.scheduler.jobs.values() if job.missed and not job.ended]:
            await self.scheduler.cancel(job, "the client did not come back after the server was restarted")

    async def _read_past(self, ledger: Ledger) -> None:
        jobs, owners = await ledger.past()
        for picture in await asyncio.to_thread(self.results.take_owners, owners):
            ledger.disown(picture)
        recovery = Recovery(ledger, self.catalog, self.pixels, self._sketch_again, self.default)
        for past in jobs:
            await self._take_back(past, recovery)
        if jobs:
            left = sum(not job.ended for job in self.scheduler.jobs.values())
            log.info("%d jobs of earlier runs are known, %d of them go on", len(jobs), left)

    async def _take_back(self, past: Past, recovery: Recovery) -> None:
        job, fault = await recovery.job(past)
        if past.ticket is not None:
            self.returned(job, past.ticket)
        await self.scheduler.take_back(job, fault)

    async def _sketch_again(self, request: ImageRequest, entry: Entry, operation: Operation) -> Sketch:
        return await asyncio.to_thread(self._sketch, request, entry, operation, [], self.settings)

    def _sketch(
        self,
        request: ImageRequest,
        entry: Entry,
        operation: Operation,
        warnings: list[str],
        settings: Settings,
    ) -> Sketch:
        if operation != "upscale":
            require_able(request, entry, self.catalog, settings)
        return sketch(request, entry, settings, operation, warnings)

    def _pixels_held(self) -> int:
        jobs = (*self.scheduler.jobs.values(), *self.scheduler.arriving.values())
        return sum(job.plan.pixel_bytes for job in jobs if not job.ended)

    def _tell(self, job: Job, event: JobEvent) -> None:
        for observer in self._observers:
            observer(job, event)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.scheduler.sweep()
            if self._ledger is not None:
                await self._ledger.sweep({*self.scheduler.jobs, *self.scheduler.arriving})
            await asyncio.to_thread(self.results.sweep)


def _make_engine(settings: Settings, make: Callable[[], Engine] | None, device: Device) -> Engine:
    return make() if make else EngineProcess(stall_timeout=settings.load_timeout, device=device)


def _results(settings: Settings, kept: State | None) -> ResultStore:
    if settings.output_dir is not None or kept is None:
        return ResultStore(settings.output_dir, settings.job_ttl)
    return ResultStore(kept.pictures, settings.job_ttl, settings.keep_pictures)
