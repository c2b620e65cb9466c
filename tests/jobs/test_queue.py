"""The queue: order, places, and how long they take, counted once for all who ask."""

from __future__ import annotations

from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.queue import Place, Queue
from gguf_imagegen.planning.plan import Plan
from gguf_imagegen.vocabulary.events import Progress, Timings
from tests.jobs.test_estimates import job_plan, took


class CountingPace(Pace):
    """Knows how often it was asked."""

    asked = 0

    def job_seconds(
        self, plan: Plan, progress: Progress | None = None, done: int = 0, kind: str | None = None
    ) -> float | None:
        self.asked += 1
        return super().job_seconds(plan, progress, done, kind)


def filled(pace: Pace, count: int) -> tuple[Queue, list[Job]]:
    queue, jobs = Queue(pace), [Job(job_plan()) for _ in range(count)]
    for job in jobs:
        queue.add(job)
    return queue, jobs


def test_places_follow_the_order() -> None:
    """Jobs move up when one before them leaves; one that has left has no place."""
    queue, (first, second, third) = filled(Pace(), 3)
    assert [queue.place(job) for job in (first, second, third)] == [Place(n, None) for n in (1, 2, 3)]
    queue.remove(second)
    assert [queue.place(job) for job in (first, second, third)] == [Place(1, None), None, Place(2, None)]
    assert (list(queue), len(queue), second in queue, third in queue) == ([first, third], 2, False, True)


def test_seconds_add_up() -> None:
    """Each waits for those before it, and for what was measured since it came."""
    pace = Pace()
    pace.learn(job_plan(), took(10, 0))
    queue, jobs = filled(pace, 3)
    assert [queue.place(job) for job in jobs] == [Place(1, 10), Place(2, 20), Place(3, 30)]
    for _ in range(100):
        pace.learn(job_plan(), Timings(0, 20_000, 0, 20_000, 10))
    place = queue.place(jobs[2])
    assert place is not None
    assert place.seconds is not None
    assert 59 < place.seconds <= 60
    other = Job(job_plan("another"))
    queue.add(other)
    assert queue.place(other) == Place(4, None)


def test_a_change_costs_one_count_however_many_ask() -> None:
    """A hundred jobs that come cost a hundred estimates; each that leaves as many as are left, once."""
    pace = CountingPace()
    queue, jobs = filled(pace, 100)
    assert pace.asked == 100
    queue.remove(jobs[0])
    for job in jobs * 10:
        queue.place(job)
    assert pace.asked == 199
