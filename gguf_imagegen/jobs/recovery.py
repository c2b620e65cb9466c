"""Jobs of earlier runs of the server, made whole again from their tickets."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from functools import partial

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Job, Queued
from gguf_imagegen.jobs.ledger import Ledger, Past
from gguf_imagegen.jobs.pixels import Pixels
from gguf_imagegen.jobs.ticket import Ticket, pinned, plan_of
from gguf_imagegen.planning.parts import chosen_parts
from gguf_imagegen.planning.plan import Operation, Plan, Sketch
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.callers import Caller, Sender
from gguf_imagegen.vocabulary.errors import GenerationFailed, ImagegenError, InternalError, NotFound

log = logging.getLogger(__name__)

SketchOf = Callable[[ImageRequest, Entry, Operation], Awaitable[Sketch]]
"""Checks a request for a model, and completes it as far as that can be done without decoding a picture."""


class Recovery:
    """Makes a job of a ticket; `unknown` is the model that stands in where not even its name can be read.

    `spread`: what is not here may be on a machine that is still to come, so that the job waits.
    """

    def __init__(
        self,
        ledger: Ledger,
        catalog: Catalog,
        able: Abilities,
        pixels: Pixels,
        sketch: SketchOf,
        unknown: Entry,
        *,
        spread: bool = False,
    ) -> None:
        self._spread = spread
        self._able = able
        self._ledger = ledger
        self._catalog = catalog
        self._pixels = pixels
        self._sketch = sketch
        self._unknown = unknown

    async def job(self, past: Past) -> tuple[Job, ImagegenError | None]:
        """The job with its history; and why it cannot be done, if it has not ended and cannot."""
        plan = self._described(past.ticket)
        job = _job(past, plan or _unreadable(self._unknown))
        if job.ended:
            return job, None
        try:
            if past.ticket is None:
                raise GenerationFailed("this version of the server cannot read the stored job; send it again")
            await self._go_on(job, past.ticket, plan)
        except ImagegenError as exc:
            return job, exc.bare()
        except Exception:  # as in `Runner`
            log.exception("internal error while job %s was read from the journal", job.id)
            return job, InternalError("internal error; the server's log has the details")
        return job, None

    def _described(self, ticket: Ticket | None) -> Plan | None:
        """The plan as it was made; None if it cannot be read."""
        if ticket is None:
            return None
        try:
            return plan_of(ticket, self._find)
        except (ValueError, TypeError) as exc:
            log.warning("the plan of job %s cannot be read, rebuilding it: %s", ticket.id, exc)
            return None

    def _find(self, name: str) -> Entry | None:
        try:
            return self._catalog.get(name)
        except NotFound:
            return None

    async def _go_on(self, job: Job, ticket: Ticket, plan: Plan | None) -> None:
        """Find all that it needs; its pixels are decoded only when it runs."""
        request = await self._ledger.request(ticket, self._able)
        entry, _ = chosen_parts(request, self._catalog.get(ticket.model))
        if not self._spread:
            self._catalog.require_within_reach(entry)
        fresh = await self._sketch(request, entry, ticket.operation)
        if plan is not None and _size(plan) != _size(fresh.bare):
            raise GenerationFailed(
                f"the model {entry.id} has changed since this job was taken; send it again"
            )
        bare = pinned(plan, fresh.bare) if plan is not None else fresh.bare
        job.plan = bare.without_pixels()
        job.complete = partial(self._complete, ticket, bare, entry)
        job.missed = not job.lasting

    async def _complete(self, ticket: Ticket, bare: Plan, entry: Entry) -> Plan:
        """The plan with its pixels."""
        request = await self._ledger.request(ticket, self._able)
        fresh = await self._sketch(request, entry, ticket.operation)
        whole = dataclasses.replace(fresh, bare=bare)
        return await self._pixels.in_turn(whole.memory, whole.plan)


def _job(past: Past, plan: Plan) -> Job:
    ticket = past.ticket
    job = Job(
        plan,
        ticket.sender if ticket else Sender(Caller(past.caller), "", past.caller),
        lasting=ticket is not None and ticket.lasting,
        hook=ticket.hook if ticket else None,
        id=past.id,
        created=ticket.created if ticket else past.created,
        names=ticket.names if ticket else (),
        first_id=past.first_id,
        parent=ticket.parent if ticket else None,
    )
    job.priority, job.since = past.priority, past.created
    job.restore([(0, job.created, Queued(1, None)), *past.events])
    return job


def _unreadable(entry: Entry) -> Plan:
    """What there is to say of a job of which nothing but its id is known."""
    return Plan(
        operation="generation",
        entry=entry,
        name=entry.id,
        generate=None,
        width=0,
        height=0,
        drawn=(0, 0),
        output_format="png",
        output_compression=None,
        quality="auto",
        keep_alive=0,
        original=None,
        mask=None,
        partial_steps=(),
        warnings=(),
        pictures=(RawImage(0, 0, 3, b""),),
    )


def _size(plan: Plan) -> tuple[object, ...]:
    spec = plan.generate
    return plan.width, plan.height, plan.drawn, plan.n, spec and (spec.width, spec.height)
