"""Which waiting job goes to which lane: a pure function of what waits and of what the lanes hold."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Final

POINT: Final = 60.0
"""Seconds of waiting that one point of priority is worth, so that nobody waits for ever."""


@dataclass(frozen=True)
class Waiting:
    """A job that waits since `since` (seconds, any clock) for `model`, a key; None needs no model.

    A key names what is loaded: the same model with another decoder has another key.
    """

    id: str
    model: str | None
    since: float
    caller: str = ""
    priority: int = 0
    needs: str = ""
    """Names all files that it needs, the model's and others."""

    @property
    def due(self) -> float:
        """When it came, or would have come to wait as long as its priority is worth."""
        return due(self.since, self.priority)


def due(since: float, priority: int) -> float:
    return since - POINT * priority


@dataclass(frozen=True)
class LaneView:
    """What placement knows of a lane.

    `holds` are the keys of its live engines, `refuses` those that did not fit beside what other lanes hold.
    `lacks` is whose files are not there (`Waiting.needs`). A paused lane starts no
    engine. `loaded` counts models in memory, `used` is when the lane worked last.
    """

    name: str
    idle: bool = True
    holds: frozenset[str] = frozenset()
    paused: bool = False
    refuses: frozenset[str] = frozenset()
    loaded: int = 0
    used: float = 0.0
    lacks: frozenset[str] = frozenset()

    def ready(self, job: Waiting) -> bool:
        """Whether this job needs no new engine here."""
        if job.needs in self.lacks:
            return False
        return bool(self.holds) if job.model is None else job.model in self.holds

    def may_load(self, job: Waiting) -> bool:
        return not self.paused and job.model not in self.refuses and job.needs not in self.lacks


@dataclass(frozen=True)
class Rules:
    """`swap_after`: seconds for which jobs that need no load go first; `served`: each caller's last start."""

    swap_after: float
    served: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    job: Waiting
    lane: str


def place(
    waiting: Sequence[Waiting], lanes: Sequence[LaneView], now: float, rules: Rules
) -> list[Assignment]:
    """Assignments that can begin now; `waiting` are in the order in which they came.

    * Callers take turns; of one caller the oldest goes first. So it is among jobs of one priority; of those
      whose turn it is in each, the one that is due first goes first.
    * Until a job has waited `swap_after`, those that need no load go before it.
    * A model that some lane holds is loaded once more on an empty lane; where another model may have to
      leave for that, only if more jobs wait for it than lanes hold it, or, once one has waited `swap_after`,
      if fewer jobs a lane wait for the other one, even without this lane: no lane swaps to and fro.
    * When memory is short for a job that has waited so long and whose turn it is, nothing else begins, so
      that lanes become idle and their models can leave.
    """
    board = _Board(waiting, lanes, now, rules)
    return list(board.assignments())


class _Board:
    """One placement: what is left of the jobs and of the idle lanes."""

    def __init__(
        self, waiting: Sequence[Waiting], lanes: Sequence[LaneView], now: float, rules: Rules
    ) -> None:
        self._jobs = _in_turn(_possible(waiting, lanes), rules.served)
        self._lanes = lanes
        self._free = {lane.name: lane for lane in lanes if lane.idle}
        self._placed: dict[str, Assignment] = {}
        self._late = now - rules.swap_after
        self._queued = Counter(job.model for job in self._jobs)

    def assignments(self) -> Iterator[Assignment]:
        while self._free and (found := self._next()):
            self._placed[found.job.id] = found
            del self._free[found.lane]
            self._queued[found.job.model] -= 1
            yield found

    def _next(self) -> Assignment | None:
        for job in self._late_ones():
            if lane := self._lane_with(job) or self._lane_for(job):
                return Assignment(job, lane.name)
            if not self._copies(job) and self._refused(job):
                return None  # memory is short
        return self._ready_one() or self._one_to_load()

    def _late_ones(self) -> Iterator[Waiting]:
        """Those that have waited long, in turn: of those that need the same, the first."""
        seen: set[tuple[str | None, str]] = set()
        for job in self._left():
            if job.due <= self._late and (job.model, job.needs) not in seen:
                seen.add((job.model, job.needs))
                yield job

    def _left(self) -> Iterator[Waiting]:
        return (job for job in self._jobs if job.id not in self._placed)

    def _ready_one(self) -> Assignment | None:
        held: set[str | None] = {key for lane in self._free.values() for key in lane.holds}
        if held:
            held.add(None)
        for job in self._left():
            if job.model in held and (lane := self._lane_with(job)):
                return Assignment(job, lane.name)
        return None

    def _one_to_load(self) -> Assignment | None:
        if all(lane.paused for lane in self._free.values()):
            return None
        seen: set[tuple[str | None, str]] = set()  # a younger job for the same files cannot do better
        for job in self._left():
            key = job.model, job.needs
            if key not in seen and (lane := self._lane_for(job)):
                return Assignment(job, lane.name)
            seen.add(key)
        return None

    def _lane_with(self, job: Waiting) -> LaneView | None:
        """An idle lane that needs no load; the one with the fewest models, which lacks more to do others."""
        return min((x for x in self._free.values() if x.ready(job)), key=lambda x: x.loaded, default=None)

    def _lane_for(self, job: Waiting) -> LaneView | None:
        """An idle lane to load on: an empty one, else the least recently used of those that may swap."""
        able = (lane for lane in self._free.values() if lane.may_load(job) and self._worth_it(job, lane))
        return min(able, key=lambda lane: (lane.loaded, lane.used), default=None)

    def _worth_it(self, job: Waiting, lane: LaneView) -> bool:
        """Whether it should be loaded there, be it once more, although other models may leave for that."""
        holders = self._copies(job)
        if not holders or not lane.loaded:
            return True
        if job.due > self._late:
            return self._queued[job.model] > holders
        share = self._queued[job.model] / holders
        return all(self._share_without(lane, model) < share for model in lane.holds)

    def _share_without(self, lane: LaneView, model: str) -> float:
        """How many jobs wait for this model, for each lane that has it but for this one."""
        waiting, others = self._queued[model], sum(model in each.holds for each in self._lanes) - 1
        return waiting / others if others else math.inf if waiting else 0.0

    def _refused(self, job: Waiting) -> bool:
        return any(job.model in lane.refuses and job.needs not in lane.lacks for lane in self._free.values())

    def _copies(self, job: Waiting) -> int:
        """How many lanes have this model in memory, or will soon."""
        coming = {each.lane for each in self._placed.values() if each.job.model == job.model}
        return sum(lane.ready(job) or lane.name in coming for lane in self._lanes)


def _possible(waiting: Sequence[Waiting], lanes: Sequence[LaneView]) -> Sequence[Waiting]:
    """Without those whose files no lane has: they wait for one that has them, and hold up nobody."""
    if not any(lane.lacks for lane in lanes):
        return waiting
    nowhere = frozenset.intersection(*(lane.lacks for lane in lanes))
    return [job for job in waiting if job.needs not in nowhere]


def _in_turn(waiting: Sequence[Waiting], served: Mapping[str, float]) -> Sequence[Waiting]:
    """The jobs of each priority in turn, merged by when the first one of each is due."""
    levels: dict[int, list[Waiting]] = defaultdict(list)
    for job in waiting:
        levels[job.priority].append(job)
    if len(levels) <= 1:
        return _by_callers(waiting, served)
    turns = [_by_callers(levels[priority], served) for priority in sorted(levels, reverse=True)]
    return list(heapq.merge(*turns, key=lambda job: job.due))


def _by_callers(waiting: Sequence[Waiting], served: Mapping[str, float]) -> Sequence[Waiting]:
    """Round-robin: the caller that was served longest ago first, of those never served who came first."""
    queues: dict[str, list[Waiting]] = defaultdict(list)
    for job in waiting:
        queues[job.caller].append(job)
    if len(queues) <= 1:
        return waiting
    callers = sorted(queues, key=lambda caller: (served.get(caller, 0.0), queues[caller][0].since))
    rounds = zip_longest(*(queues[caller] for caller in callers))
    return [job for turn in rounds for job in turn if job is not None]
