"""One server's models, queue and results: what the API, the one-shot command and the tests hold."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.default_model import served_name
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.engines.backend import Backend
from gguf_imagegen.engines.ocr.reader import Reader, rapidocr
from gguf_imagegen.jobs.forecast import Forecast, Forecaster
from gguf_imagegen.jobs.ids import draw_id
from gguf_imagegen.jobs.job import Ended, Hook, Job, JobEvent, Observer
from gguf_imagegen.jobs.ledger import Ledger, Past, goes_on
from gguf_imagegen.jobs.letter import letter_of
from gguf_imagegen.jobs.pace_file import PaceFile
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.pixels import Pixels
from gguf_imagegen.jobs.recovery import Recovery
from gguf_imagegen.jobs.results import results_of
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.jobs.sets import Sets
from gguf_imagegen.jobs.sketcher import Sketcher
from gguf_imagegen.jobs.state import State
from gguf_imagegen.jobs.ticket import Repeat, Ticket
from gguf_imagegen.jobs.webhooks import Webhooks
from gguf_imagegen.machine import cores, heap
from gguf_imagegen.planning.adapters import adapters_of, with_adapter
from gguf_imagegen.planning.bounds import within
from gguf_imagegen.planning.canvas import enlarger
from gguf_imagegen.planning.enhancer import Enhancer
from gguf_imagegen.planning.parts import chosen_parts
from gguf_imagegen.planning.plan import Operation, Plan, Sketch
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.pool.needs import files_of
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.pool.ray.cluster import Cluster
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.callers import Caller, Sender
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.errors import Forbidden, ImagegenError, InvalidRequest, ModelNotFound, QueueFull
from gguf_imagegen.vocabulary.waits import USUAL, Waits

log = logging.getLogger(__name__)
OPENAI_MODELS = re.compile(r"dall-e-[23]|gpt-image-.+")
"""Names that can mean nothing else on this server than "the model"."""
THUMBNAILS_AT_ONCE = 2
SWEEP = 30.0
"""Seconds between two looks for what has expired."""


class Service:
    """Takes requests and has them done.

    `make_reader` gives an engine that reads text, not started yet; without one it is RapidOCR. Pictures go to
    `settings.output_dir`, else to the state folder, which is this server's alone; without either they are
    kept for a time only. Jobs are in the ledger of the state folder; those of an earlier run are `returned`
    with their tickets before `knows_the_past` is set.
    """

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        default_model: str,
        backend: Backend,
        *,
        kept: State | None = None,
        observers: Sequence[Observer] = (),
        make_reader: Callable[[], Engine] | None = None,
        waits: Waits = USUAL,
    ) -> None:
        adapters_of(settings.lora_names)  # what is wrong with them is said at the start
        enlarger(settings)  # and so is an upscaler that is not there
        self.settings = settings
        self.waits = waits
        self.catalog = catalog
        self.default_model = default_model
        """The name of the model of requests that name none; AUTOMATIC1111's options change it."""
        self.served_name = served_name(settings, catalog, default_model)
        """What the model is called that the server was started for."""
        self._served = catalog.get(default_model).id
        self.abilities = backend.abilities()
        self.pool = Pool(catalog, settings, backend.engine, backend.devices(), waits=waits)
        self.backend = backend
        self.cluster = (
            Cluster(settings, catalog, self.pool, kept.pictures.parent if kept else None, waits)
            if settings.cluster
            else None
        )
        self.results = results_of(settings, kept.pictures if kept else None)
        self._ledger = kept.ledger if kept else None
        self.webhooks = Webhooks(settings, self._ledger, waits)
        self._sketcher = Sketcher(catalog, self.pool, self.abilities)
        self._enhancer = Enhancer(settings)
        self.scheduler = Scheduler(
            settings, self.pool, self.results, self._tell, self._store, waits=waits
        )  # fmt: skip
        self._pace_file = PaceFile(kept.pace if kept else None)
        self.pixels = Pixels(self._pixels_held)
        self.sets = Sets(self.scheduler, self._ledger, self._submit_item, settings)
        self._forecaster = Forecaster(catalog, settings, self.pool, self.scheduler.pace)
        self.returned: Callable[[Job | PictureSet, Ticket], None] = lambda job, ticket: None
        self.forgotten: Mapping[str, str] = {}
        """Callers by job, of those that expired in earlier runs of the server."""
        self.knows_the_past = asyncio.Event()
        self.reader = Reader(
            make_reader or partial(rapidocr, settings.threads or cores.usable_cores()),
            most=settings.max_queue,
            keep=settings.keep_alive,
        )
        self._observers = (*observers, self._ledger.note) if self._ledger else observers
        self._thumbnails = asyncio.Semaphore(THUMBNAILS_AT_ONCE)

    @property
    def default(self) -> Entry:
        return self.catalog.get(self.default_model)

    def model(self, name: str | None) -> Entry:
        """The named model, or the default one."""
        return self.catalog.get(name) if name else self.default

    def listed(self, every: bool) -> list[Entry]:
        """The default model first, for clients take that; then what is on disk, or the whole catalog."""
        default = self.default
        rest = [entry for entry in self.catalog.entries if entry.id != default.id]
        return [default, *(entry for entry in rest if every or self.catalog.within_reach(entry))]

    def meant(self, name: str | None, warnings: list[str], *, any_model: bool = False) -> Entry:
        """The model of a request for a picture; some names that are none here, or any, mean the default."""
        try:
            return self.model(name)
        except ModelNotFound:
            if not (any_model or self.settings.any_model or (name and OPENAI_MODELS.fullmatch(name))):
                raise
            entry = self.default
            warnings.append(f"model: there is no {str(name)[:100]!r} here; {entry.id!r} was used")
            return entry

    def name_of(self, entry: Entry) -> str:
        """What answers call a model that the request did not name."""
        return self.served_name if entry.id == self._served else entry.id

    async def submit(
        self,
        request: ImageRequest,
        operation: Operation,
        warnings: list[str],
        sender: Sender | None = None,
        *,
        lasting: bool = False,
        repeat: Repeat | None = None,
        base: str = "",
    ) -> Job:
        """Queue what a request asks for; all that can be refused is refused before a picture is decoded.

        A `lasting` job goes on whether anybody waits for it or not, over restarts of the server too; `repeat`
        is how a repeated request is known after one. Addresses in what its webhook is told begin with `base`.
        """
        sender = sender or Sender()
        check_priority(request.priority, sender.caller)
        self.webhooks.check(request.webhook)
        self.check_room(sender.caller)
        request, sketched = await self._sketched(request, operation, warnings, sender.caller)
        self.pool.check_pause(None if operation == "upscale" else sketched.bare.entry)
        if request.enhance:
            request = await self._enhanced(request, operation, warnings)
            request, sketched = await self._sketched(request, operation, warnings, sender.caller)
        plan = await self.pixels.in_turn(sketched.memory, sketched.plan)
        self.check_room(sender.caller)
        hook = Hook(request.webhook, base) if request.webhook else None
        job = Job(plan, sender, lasting=lasting, hook=hook, id=draw_id("job", self.settings.server_name))
        await self._accept(job, request, repeat)
        return job

    async def plan(
        self, request: ImageRequest, operation: Operation, warnings: list[str], sender: Sender
    ) -> Plan:
        """What would be done; refused is what `submit` would refuse, but for want of room."""
        check_priority(request.priority, sender.caller)
        _, sketched = await self._sketched(request, operation, warnings, sender.caller)
        return await self.pixels.in_turn(sketched.memory, sketched.plan)

    async def forecasts(self, plans: Sequence[Plan]) -> list[Forecast]:
        """What these would cost."""
        return await asyncio.to_thread(self._forecaster.of, plans)

    async def submit_set(self, wanted: PictureSet) -> None:
        """Take a set, each item of which was planned."""
        self.check_room(wanted.sender.caller)
        await self.sets.submit(wanted)

    async def _submit_item(self, wanted: PictureSet, index: int) -> Job:
        """Queue one picture of a set, which was checked with its set: it waits for room and engines."""
        request, sketched = await self._sketched(
            wanted.request_of(index), wanted.operation, [], wanted.sender.caller
        )
        plan = await self.pixels.in_turn(sketched.memory, sketched.plan)
        job = Job(plan, wanted.sender, lasting=True, id=wanted.items[index].job, parent=wanted.id)
        await self._accept(job, request, None)
        return job

    async def thumbnail(self, picture: str, width: int) -> bytes | None:
        """A WebP of this width, None where the picture is no wider; few are made at once."""
        async with self._thumbnails:
            return await asyncio.to_thread(self.results.thumbnail, picture, width)

    async def in_turn(self, draw: Callable[[], bytes]) -> bytes:
        """A drawing of small pictures; few are made at once."""
        async with self._thumbnails:
            return await asyncio.to_thread(draw)

    def move(self, job: Job, priority: int, caller: Caller) -> None:
        """Let a waiting job go sooner or later; one that has begun stays as it is."""
        check_priority(priority, caller)
        self.scheduler.move(job, priority)
        if self._ledger is not None:
            self._ledger.move(job)

    def let_before(self, job: Job, other: Job) -> None:
        """Let a waiting job go before another one of the same caller. Raises InvalidRequest for any other."""
        if (other.caller, other.priority) != (job.caller, job.priority):
            raise InvalidRequest("before: must be a job of the same caller and priority", param="before")
        moved = self.scheduler.let_before(job, other)
        if self._ledger is not None:
            for each in moved:
                self._ledger.move(each)

    async def _enhanced(
        self, request: ImageRequest, operation: Operation, warnings: list[str]
    ) -> ImageRequest:
        """The request with a better prompt, which is what is stored and made; else the wish taken back."""
        text = await self._enhancer.better(request.prompt, operation, warnings)
        return request.model_copy(update={"prompt": text} if text is not None else {"enhance": False})

    async def _sketched(
        self, request: ImageRequest, operation: Operation, warnings: list[str], caller: Caller
    ) -> tuple[ImageRequest, Sketch]:
        """The request with its model named, and checked within the bounds of its caller."""
        request, entry = self._named(request, warnings)
        if not request.model:
            request = request.model_copy(update={"model": self.name_of(entry)})
        entry, notes = chosen_parts(request, entry)
        if operation != "upscale":
            self.catalog.require_within_reach(entry)
        settings = within(self.settings, caller.bounds)
        found = await asyncio.to_thread(
            self._sketcher.sketch, request, entry, operation, [*warnings, *notes], settings
        )
        self.pool.require(*files_of(found.bare))
        return request, found

    def _named(self, request: ImageRequest, warnings: list[str]) -> tuple[ImageRequest, Entry]:
        """The model that a request names; a LoRA's name means the default one with that LoRA."""
        if request.model and not self.catalog.knows(request.model):
            adapted = with_adapter(request, self.settings)
            if adapted is not None:
                return adapted, self.default
            return request.model_copy(update={"model": None}), self.meant(request.model, warnings)
        return request, self.model(request.model)

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
        works = [self._remember(), self.scheduler.run(), self._sweep()]
        if self.cluster is not None:
            works.append(self.cluster.run())
        tasks = [asyncio.create_task(work) for work in works]
        try:
            yield
        finally:
            if not self.scheduler.draining:
                await self.scheduler.drain(0)
            await self.sets.close()
            while not all(task.done() for task in tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=self.waits.cancel_again)
            await self.reader.close()
            await self.webhooks.close()
            self.results.close()
            await asyncio.to_thread(self._pace_file.write, self.scheduler.pace.known())
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
            self.scheduler.pace.recall(await asyncio.to_thread(self._pace_file.read))
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
        self.webhooks.send(ledger.letters)
        self.forgotten = ledger.forgotten
        for picture in await asyncio.to_thread(self.results.take_owners, owners):
            ledger.disown(picture)
        recovery = Recovery(
            ledger, self.catalog, self.abilities, self.pixels, self._sketch_again, self.default,
            spread=self.pool.spreads,
        )  # fmt: skip
        for past in jobs:
            await self._take_back(past, recovery)
        self.sets.go_on()
        if jobs:
            left = sum(not job.ended for job in self.scheduler.jobs.values())
            log.info("restored %d jobs of earlier runs, %d of them continue", len(jobs), left)

    async def _take_back(self, past: Past, recovery: Recovery) -> None:
        if past.ticket is not None and past.ticket.items:
            found = await self.sets.take_back(past, past.ticket, self.abilities)
            self.returned(found, past.ticket)
            return
        job, fault = await recovery.job(past)
        if past.ticket is not None:
            self.returned(job, past.ticket)
        await self.scheduler.take_back(job, fault)

    async def _sketch_again(self, request: ImageRequest, entry: Entry, operation: Operation) -> Sketch:
        return await asyncio.to_thread(self._sketcher.sketch, request, entry, operation, [], self.settings)

    def _pixels_held(self) -> int:
        jobs = (*self.scheduler.jobs.values(), *self.scheduler.arriving.values())
        return sum(job.plan.pixel_bytes for job in jobs if not job.ended)

    def _tell(self, job: Job, event: JobEvent) -> None:
        for observer in self._observers:
            observer(job, event)

    async def _store(self, job: Job, event: JobEvent) -> None:
        """Store an event, and have the end of a job told to whom its request names."""
        letter = None
        if isinstance(event, Ended) and not goes_on(job, event):
            letter = letter_of(job, event, time.time())
        if self._ledger is not None:
            await self._ledger.store(job, event, letter)
        if letter is not None:
            self.webhooks.send([letter])

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.sets.sweep()
            self.scheduler.sweep()
            if self._ledger is not None:
                kept = {*self.scheduler.jobs, *self.scheduler.arriving, *self.sets.ids}
                await self._ledger.sweep(kept)
            await asyncio.to_thread(self._pace_file.write, self.scheduler.pace.known())
            await asyncio.to_thread(self.results.sweep)
            await asyncio.to_thread(heap.give_back)  # jobs of mixed sizes leave gaps: 6 MB after 3,000


def check_priority(priority: int, caller: Caller) -> None:
    """Everybody may let others go first."""
    if priority > 0 and not caller.admin:
        raise Forbidden("priority: only an admin may raise it above 0", param="priority")
