"""What a server has promised and stored: its tickets, their journal, and the pictures they name."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, Started
from gguf_imagegen.jobs.journal import Journal, Record, Refused
from gguf_imagegen.jobs.letter import Letter
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.jobs.stored import (
    StoredEnd,
    StoredItem,
    restored,
    restored_error,
    stored,
    stored_error,
)
from gguf_imagegen.jobs.ticket import Repeat, Ticket, request_of, ticket_of
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.callers import EVERYBODY
from gguf_imagegen.vocabulary.errors import GenerationFailed, ImagegenError, ShuttingDown, StorageFailed
from gguf_imagegen.vocabulary.events import Notice

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds that the disk gets for one thing; it takes milliseconds."""
A_LIFE = 1_000_000
"""Event ids of a job that one run of the server can use."""


@dataclass(frozen=True)
class Past:
    """A job of an earlier run of the server with its history; `ticket` is None if it cannot be read.

    A set has the `faults` of items that could not be queued.
    """

    id: str
    caller: str
    created: float
    priority: int
    ticket: Ticket | None
    events: Sequence[tuple[int, float, JobEvent]]
    first_id: int
    """For its next event: above all that earlier runs may have used."""
    faults: Mapping[int, ImagegenError] = field(default_factory=dict)


class Ledger:
    """Keeps a ticket for each job until the job is forgotten."""

    def __init__(self, journal: Journal, spool: Spool) -> None:
        self._journal = journal
        self._spool = spool
        self._needed: dict[str, Sequence[str]] = {}
        """By job whose ticket is stored: hashes of the files that it still needs."""
        self.letters: list[Letter] = []
        self.forgotten: Mapping[str, str] = {}
        """Of earlier runs, once the past is read: what has not arrived, and callers by job that expired."""

    async def past(self) -> tuple[list[Past], Mapping[str, str]]:
        """All jobs of earlier runs, the oldest first, and the owners of pictures.

        From now on things can be stored.
        """
        records, owners = await asyncio.to_thread(self._journal.read)
        self.letters = await asyncio.to_thread(self._journal.letters)
        self.forgotten = await asyncio.to_thread(self._journal.forgotten)
        self._needed = {record.job: _needed_by(record) for record in records}
        await asyncio.to_thread(self._spool.sweep, self._hashes(), 0.0)
        self._journal.start()
        return [self._past(record) for record in records], owners

    def _past(self, record: Record) -> Past:
        events = [
            (id, at, restored(event)) for id, at, event in record.events if not isinstance(event, StoredItem)
        ]
        faults = {
            event.index: restored_error(event.end)
            for _, _, event in record.events
            if isinstance(event, StoredItem)
        }
        first_id = (self._journal.life - record.life) * A_LIFE
        return Past(
            record.job,
            record.caller,
            record.created,
            record.priority,
            record.ticket,
            events,
            first_id,
            faults,
        )

    async def request(self, ticket: Ticket, able: Abilities) -> ImageRequest:
        """The request of a ticket, with its pictures."""
        try:
            return await asyncio.to_thread(request_of, ticket, self._spool, able)
        except OSError:
            raise GenerationFailed(
                "a picture of the request is lost from the state folder; send it again"
            ) from None
        except ValueError:
            raise GenerationFailed(
                "this version of the server cannot read the stored request; send it again"
            ) from None

    async def accept(self, job: Job, request: ImageRequest, repeat: Repeat | None) -> None:
        """When this returns, the job is done even if the server is killed now. Raises StorageFailed."""
        await self._accept(job.id, partial(ticket_of, job, request, self._spool, repeat))

    async def accept_set(self, wanted: PictureSet) -> None:
        """The same of a set; its jobs are accepted one by one, when their turn comes."""
        await self._accept(wanted.id, partial(wanted.ticket, self._spool))

    async def _accept(self, id: str, make: Callable[[], Ticket]) -> None:
        try:
            ticket = await asyncio.to_thread(make)
            self._needed[id] = ticket.hashes
            await asyncio.wait_for(self._journal.accept(ticket), PATIENCE)
        except (OSError, Refused, asyncio.TimeoutError) as exc:
            self._forget(id)
            why = exc.strerror if isinstance(exc, OSError) else str(exc)
            raise StorageFailed(
                f"the job cannot be stored in the server's state folder ({why or 'no answer'}): make room"
                " there, or start the server with --ephemeral",
                retry_after=10,
            ) from exc
        except BaseException:  # the client left
            self._forget(id)
            raise

    async def end_set(self, wanted: PictureSet, event: Ended) -> None:
        """Have the end of a set on the disk, as far as the disk takes it."""
        kept = stored(event)
        if wanted.id in self._needed and kept is not None:
            with suppress(Refused, asyncio.TimeoutError):
                await asyncio.wait_for(self._journal.event(wanted.id, 0, time.time(), kept), PATIENCE)
            self._needed[wanted.id] = ()

    def item_failed(self, wanted: PictureSet, index: int, error: ImagegenError) -> None:
        """Store in passing why an item of a set could not be queued."""
        if wanted.id in self._needed:
            self._journal.note(wanted.id, 1 + index, time.time(), StoredItem(index, stored_error(error)))

    async def store(self, job: Job, event: JobEvent, letter: Letter | None = None) -> None:
        """Have an event on the disk, if the disk takes it; else it is tried again later.

        With an end its letter, if there is one. A job that is to go on at the next server has no end here.
        """
        kept = stored(event)
        if job.id not in self._needed or kept is None or goes_on(job, event):
            return
        if isinstance(event, ImageReady) and job.caller != EVERYBODY.name:
            self._journal.own(event.name, job.caller)
        written: Awaitable[None] = self._journal.event(job.id, job.next_id, time.time(), kept, letter)
        with suppress(Refused, asyncio.TimeoutError):
            await asyncio.wait_for(written, PATIENCE)
        if isinstance(event, Ended):
            self._needed[job.id] = ()

    def note(self, job: Job, event: JobEvent) -> None:
        """Observes the scheduler: store in passing what nobody builds on."""
        kept = stored(event) if isinstance(event, Started | Notice) else None
        if kept is not None and job.id in self._needed:
            self._journal.note(job.id, job.ids[-1], job.times[-1], kept)

    def forget(self, job: Job) -> None:
        """It will not be done, and nobody is to hear of it."""
        self._forget(job.id)

    def move(self, job: Job) -> None:
        """It is to go sooner or later."""
        if job.id in self._needed:
            self._journal.move(job.id, job.priority, job.since)

    def keep(self, letter: Letter) -> None:
        self._journal.keep(letter)

    def discard(self, letter: Letter) -> None:
        self._journal.discard(letter.job)

    def disown(self, picture: str) -> None:
        self._journal.disown(picture)

    async def sweep(self, jobs: Container[str]) -> None:
        """Forget all other jobs, and delete files that nobody needs."""
        for job_id in [job_id for job_id in self._needed if job_id not in jobs]:
            self._forget(job_id)
        await asyncio.to_thread(self._spool.sweep, self._hashes())

    async def close(self) -> None:
        await self._journal.close()

    def _forget(self, job_id: str) -> None:
        self._needed.pop(job_id, None)
        self._journal.forget(job_id)

    def _hashes(self) -> set[str]:
        return {each for hashes in self._needed.values() for each in hashes}


def goes_on(job: Job, event: JobEvent) -> bool:
    """Whether this end is that of the server, and not the job's."""
    return job.lasting and isinstance(event, Ended) and isinstance(event.error, ShuttingDown)


def _needed_by(record: Record) -> Sequence[str]:
    over = any(isinstance(event, StoredEnd) for _, _, event in record.events)
    return () if over or record.ticket is None else record.ticket.hashes
