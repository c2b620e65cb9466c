"""A set: many pictures that were asked for at once, each an ordinary job as soon as its turn comes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import fmean

from gguf_imagegen.jobs.ids import draw_id
from gguf_imagegen.jobs.job import Job, Status
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.jobs.ticket import OWN, Item, Repeat, Ticket, fields_of, spooled
from gguf_imagegen.planning.plan import Operation
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.vocabulary.callers import Sender
from gguf_imagegen.vocabulary.errors import Cancelled, ImagegenError


class PictureSet:
    """`request` is what all items share; each has its own `OWN` fields. Only `Sets` changes it.

    `errors` are those of items that could not be queued; `end` is why the set ended before its items did;
    `repeat` is how a repeated request for it is known.
    """

    def __init__(
        self,
        request: ImageRequest,
        operation: Operation,
        items: Sequence[Item],
        sender: Sender,
        *,
        warnings: Sequence[str] = (),
        id: str = "",
        created: float | None = None,
        repeat: Repeat | None = None,
    ) -> None:
        self.id = id or draw_id("set")
        self.request = request
        self.operation = operation
        self.items = items
        self.sender = sender
        self.warnings = warnings
        self.repeat = repeat
        self.created = time.time() if created is None else created
        self.ended: float | None = None
        self.end: ImagegenError | None = None
        self.jobs: dict[int, Job] = {}
        self.errors: dict[int, ImagegenError] = {}

    def request_of(self, index: int) -> ImageRequest:
        item = self.items[index]
        return self.request.model_copy(update={name: getattr(item, name) for name in OWN})

    def ticket(self, spool: Spool) -> Ticket:
        """As it is stored; its pictures are in the spool then. Writes files."""
        return Ticket(
            id=self.id,
            caller=self.sender.caller.name,
            dialect=self.sender.dialect,
            operation=self.operation,
            model="",
            request=fields_of(self.request),
            files=spooled(self.request, spool),
            plan={},
            names=[],
            lasting=True,
            repeat=self.repeat,
            created=self.created,
            priority=self.request.priority,
            items=list(self.items),
        )

    # -- how far it is --------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """At its end that of its items: failed if one failed."""
        if isinstance(self.end, Cancelled):
            return "cancelled"
        found = {self.status_of(index) for index in range(len(self.items))}
        if self.ended is None:
            return "queued" if found == {"queued"} else "running"
        return "failed" if "failed" in found or self.end is not None else "succeeded"

    def status_of(self, index: int) -> Status:
        if job := self.jobs.get(index):
            return job.status
        if index in self.errors:
            return "failed"
        return "queued" if self.ended is None else "cancelled"

    def error_of(self, index: int) -> ImagegenError | None:
        job = self.jobs.get(index)
        return job.error if job else self.errors.get(index)

    @property
    def live(self) -> list[Job]:
        """The jobs that wait or run."""
        return [job for job in self.jobs.values() if not job.ended]

    @property
    def done(self) -> int:
        """How many items have ended."""
        return sum(self.status_of(index) not in ("queued", "running") for index in range(len(self.items)))

    @property
    def progress(self) -> float:
        """Per cent, 100 only at the end."""
        if self.ended is not None:
            return 100.0
        parts = sum(job.progress for job in self.live)
        return min(99.0, (100 * self.done + parts) / len(self.items))

    def seconds_left(self, lanes: int) -> float | None:
        """By the mean of its pictures so far; None before the first one."""
        took = [
            job.ended_at - job.started_at
            for job in self.jobs.values()
            if job.ended_at is not None and job.started_at is not None and job.images
        ]
        if self.ended is not None or not took:
            return 0.0 if self.ended is not None else None
        left = len(self.items) - self.done - sum(job.progress for job in self.live) / 100
        return fmean(took) * left / lanes

    @property
    def varies(self) -> list[str]:
        """The fields in which its items differ."""
        return [name for name in OWN if len({getattr(item, name) for item in self.items}) > 1]
