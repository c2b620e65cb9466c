"""The jobs that wait: their order, the place of each, and how long the ones before it will take.

Callers are served in turn, each caller's jobs by age; so it is among jobs of one priority, and those whose
turn it is in each go by when they are due (`pool.placement`).
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.pool.needs import Files, addons_of, files_of
from gguf_imagegen.pool.placement import POINT, Waiting, due
from gguf_imagegen.pool.pool import key_of


@dataclass(frozen=True)
class Place:
    """`position` counts from 1; `seconds` is the time that all jobs up to this one take, if known."""

    position: int
    seconds: float | None


class Queue:
    """Waiting jobs in the order in which they are served. Places are counted once after a change."""

    def __init__(self, pace: Pace) -> None:
        self.moves = 0
        """How often a job has left or cut in, which moves those behind it."""
        self._pace = pace
        self.served: dict[str, float] = {}
        """By caller: when its last job began, in seconds since the epoch."""
        self._lines: dict[tuple[int, str], Line] = {}  # of priorities and callers with jobs that wait

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Job]:
        """The next one first."""
        return heapq.merge(*map(self._in_turn, self._priorities), key=_due)

    def _in_turn(self, priority: int) -> Iterator[Job]:
        """A job of each caller in turn, who was served longest ago first."""
        waiting = [iter(line) for line in self._by_turn(priority)]
        while waiting:
            left = []
            for each in waiting:
                job = next(each, None)
                if job is not None:
                    yield job
                    left.append(each)
            waiting = left

    def __contains__(self, job: Job) -> bool:
        return job in self._lines.get(_key(job), ())

    def add(self, job: Job) -> None:
        line = self._lines.setdefault(_key(job), Line(self._pace))
        line.add(job)
        self.moves += len(self._lines) > 1

    def take(self, job: Job) -> None:
        """Remove a job that is served: its caller's next turn comes after those of all others."""
        self.served[job.caller] = max(time.time(), *self.served.values(), 0.0)
        self.remove(job)

    def put_back(self, job: Job) -> None:
        """It could not begin after all: it waits again, where it has been."""
        self.add(job)
        self.moves += 1

    def let_before(self, job: Job, other: Job) -> list[Job]:
        """Let a job go before another of its caller and priority; returns the jobs that have moved.

        They exchange their ages, so the jobs of other callers wait no longer than before.
        """
        self.moves += 1
        return self._lines[_key(job)].let_before(job, other)

    def remove(self, job: Job) -> None:
        line = self._lines[_key(job)]
        line.remove(job)
        if not line:
            del self._lines[_key(job)]
        self.moves += 1

    @property
    def waiting(self) -> list[Waiting]:
        """The jobs as placement sees them, the oldest first."""
        return list(heapq.merge(*(line.waiting.values() for line in self._lines.values()), key=_since))

    @property
    def needs(self) -> list[tuple[Job, str]]:
        """The jobs, each with its `Waiting.needs`."""
        lines = self._lines.values()
        return [
            (job, each.needs) for line in lines for job, each in zip(line, line.waiting.values(), strict=True)
        ]

    @property
    def wants(self) -> dict[str, Files]:
        """The files of the jobs, by `Waiting.needs`."""
        one_of = {needs: job for job, needs in self.needs}
        return {needs: files_of(job.plan) for needs, job in one_of.items()}

    def place(self, job: Job) -> Place | None:
        """None if it does not wait. Jobs of other priorities count as before it by when each is due."""
        line = self._lines.get(_key(job))
        own = line.place(job) if line else None
        if own is None:
            return None
        counts = chain(self._sooner(job, own.position), self._due_before(job))
        places = [own, *(other.first(count) for other, count in counts if count > 0)]
        times = [place.seconds for place in places if place.seconds is not None]
        known = sum(times) if len(times) == len(places) else None
        return Place(sum(place.position for place in places), known)

    def _sooner(self, job: Job, position: int) -> Iterator[tuple[Line, int]]:
        """How many jobs of other callers, of the same priority, go before it."""
        sooner = True
        for other in self._by_turn(job.priority):
            if other is self._lines[_key(job)]:
                sooner = False
            else:
                yield other, min(len(other), position - (not sooner))

    def _due_before(self, job: Job) -> Iterator[tuple[Line, int]]:
        """How many jobs of other priorities go before it."""
        for (priority, _), line in self._lines.items():
            if priority != job.priority:
                yield line, line.until(_due(job) + POINT * priority, with_ties=priority > job.priority)

    @property
    def _priorities(self) -> list[int]:
        """The highest first."""
        return sorted({priority for priority, _ in self._lines}, reverse=True)

    def _by_turn(self, priority: int) -> list[Line]:
        """The lines by when their callers were last served; those who never were, by who came first."""
        lines = [(caller, line) for (each, caller), line in self._lines.items() if each == priority]

        def turn(named: tuple[str, Line]) -> tuple[float, float]:
            return self.served.get(named[0], 0.0), next(iter(named[1])).since

        return [line for _, line in sorted(lines, key=turn)]


class Line:
    """One caller's waiting jobs of one priority by age, and their places among themselves."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self.waiting: dict[str, Waiting] = {}
        """By job, as placement sees them: made once, for it looks at all of them whenever a lane is idle."""
        self._jobs: dict[str, Job] = {}
        self._indexes: dict[str, int] = {}  # of the jobs in `_places`
        self._places: list[Place] = []
        self._since: list[float] = []  # of the jobs in `_places`
        self._removed = 0
        self._counted = (0, 0)  # removals and measurements that the places are true for

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def __contains__(self, job: Job) -> bool:
        return job.id in self._jobs

    def add(self, job: Job) -> None:
        self._bring_up_to_date()
        last = next(reversed(self._jobs.values()), job)
        self._jobs[job.id], self.waiting[job.id] = job, _waiting(job)
        if job.since < last.since:
            self._order(sorted(self, key=lambda job: job.since))
        else:
            self._append(job)

    def remove(self, job: Job) -> None:
        del self._jobs[job.id], self.waiting[job.id]
        self._removed += 1

    def let_before(self, job: Job, other: Job) -> list[Job]:
        jobs = [each for each in self if each is not job]
        jobs.insert(jobs.index(other), job)
        moved = [(each, before.since) for each, before in zip(jobs, self, strict=True) if each is not before]
        for each, since in moved:
            each.since = since
            self.waiting[each.id] = _waiting(each)
        self._order(jobs)
        return [each for each, _ in moved]

    def _order(self, jobs: Sequence[Job]) -> None:
        """The same jobs in another order."""
        self._jobs = {job.id: job for job in jobs}
        self.waiting = {id: self.waiting[id] for id in self._jobs}
        self._removed += 1

    def place(self, job: Job) -> Place | None:
        self._bring_up_to_date()
        index = self._indexes.get(job.id)
        return None if index is None else self._places[index]

    def first(self, count: int) -> Place:
        """How many the first ones are, and how long they take together."""
        self._bring_up_to_date()
        return self._places[count - 1]

    def until(self, since: float, *, with_ties: bool) -> int:
        """How many came before this time, or at it."""
        self._bring_up_to_date()
        return (bisect_right if with_ties else bisect_left)(self._since, since)

    def _bring_up_to_date(self) -> None:
        state = self._removed, self._pace.measured
        if state != self._counted:
            self._counted, self._indexes, self._places, self._since = state, {}, [], []
            for job in self:
                self._append(job)

    def _append(self, job: Job) -> None:
        last = self._places[-1] if self._places else Place(0, 0.0)
        own = self._pace.job_seconds(job.plan)
        known = None if last.seconds is None or own is None else last.seconds + own
        self._indexes[job.id] = len(self._places)
        self._places.append(Place(last.position + 1, known))
        self._since.append(job.since)


def _key(job: Job) -> tuple[int, str]:
    return job.priority, job.caller


def _due(job: Job) -> float:
    return due(job.since, job.priority)


def _since(waiting: Waiting) -> float:
    return waiting.since


def _waiting(job: Job) -> Waiting:
    model = key_of(job.plan.entry) if job.plan.generate else None
    files = [model or "", *map(str, addons_of(job.plan))]
    return Waiting(job.id, model, job.since, job.caller, job.priority, " + ".join(files))
