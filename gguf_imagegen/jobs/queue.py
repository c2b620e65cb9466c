"""The jobs that wait: their order, the place of each, and how long the ones before it will take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.pool.placement import Waiting
from gguf_imagegen.pool.pool import key_of


@dataclass(frozen=True)
class Place:
    """`position` counts from 1; `seconds` is the time that all jobs up to this one take, if known."""

    position: int
    seconds: float | None


class Queue:
    """Waiting jobs by age. Places are counted once after a change, for all who ask."""

    def __init__(self, pace: Pace) -> None:
        self.moves = 0
        """How often a job has left, which moves up those behind it."""
        self._pace = pace
        self._jobs: dict[str, Job] = {}
        self._waiting: dict[str, Waiting] = {}
        self._places: dict[str, Place] = {}
        self._counted = (0, 0)  # moves and measurements that the places are true for

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        """The oldest first."""
        return iter(self._jobs.values())

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    @property
    def waiting(self) -> list[Waiting]:
        """The jobs as placement sees them, the oldest first."""
        return list(self._waiting.values())

    def add(self, job: Job) -> None:
        places = self._up_to_date()
        self._jobs[job.id], self._waiting[job.id] = job, _waiting(job)
        last = next(reversed(places.values()), Place(0, 0.0))
        places[job.id] = self._behind(last, job)

    def remove(self, job: Job) -> None:
        del self._jobs[job.id]
        del self._waiting[job.id]
        self.moves += 1

    def put_back(self, job: Job) -> None:
        """It could not begin after all: it waits again, where it has been."""
        self.add(job)
        self._jobs = dict(sorted(self._jobs.items(), key=lambda each: each[1].created))
        self._waiting = {id: self._waiting[id] for id in self._jobs}
        self.moves += 1

    def place(self, job: Job) -> Place | None:
        """None if it does not wait."""
        return self._up_to_date().get(job.id)

    def _up_to_date(self) -> dict[str, Place]:
        state = self.moves, self._pace.measured
        if state != self._counted:
            last, self._places, self._counted = Place(0, 0.0), {}, state
            for job in self:
                self._places[job.id] = last = self._behind(last, job)
        return self._places

    def _behind(self, last: Place, job: Job) -> Place:
        own = self._pace.job_seconds(job.plan)
        known = None if last.seconds is None or own is None else last.seconds + own
        return Place(last.position + 1, known)


def _waiting(job: Job) -> Waiting:
    return Waiting(job.id, key_of(job.plan.entry) if job.plan.generate else None, job.created)
