"""Turns of callers in the queue: the places are those of the order, whatever comes and goes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gguf_imagegen.jobs.estimates import Pace
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.queue import Place, Queue
from gguf_imagegen.pool.placement import POINT
from gguf_imagegen.vocabulary.callers import Caller, Sender
from tests.jobs.test_estimates import job_plan, took

PLAN = job_plan()
"""Made once: reading the settings takes longer than all that is tried here."""


def job_of(caller: str, priority: int = 0) -> Job:
    return Job(replace(PLAN, priority=priority), Sender(Caller(caller)))


def order(queue: Queue) -> str:
    return "".join(job.caller for job in queue)


def test_one_of_each_in_turn() -> None:
    """Who was served longest ago comes first; one who comes back has no turn in hand."""
    queue = Queue(Pace())
    for caller in "aaabbc":
        queue.add(job_of(caller))
    assert order(queue) == "abcaba"
    queue.take(next(iter(queue)))
    assert order(queue) == "bcaba"
    queue.take(next(iter(queue)))
    queue.add(job_of("b"))
    assert order(queue) == "cabab"


def test_a_cancel_costs_no_turn() -> None:
    """A job that leaves unserved leaves its caller's place as it was."""
    queue = Queue(Pace())
    jobs = [job_of(caller) for caller in "aab"]
    for job in jobs:
        queue.add(job)
    queue.remove(jobs[0])
    assert list(queue) == jobs[1:]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["add", "add", "take", "remove"]))))
def test_places_are_those_of_the_order(steps: list[tuple[str, str]]) -> None:
    """Each job's place is its number in the order, and its time that of all up to it."""
    pace = Pace()
    pace.learn(PLAN, took(10, 0))
    queue = Queue(pace)
    for caller, step in steps:
        own = [job for job in queue if job.caller == caller]
        if step == "add":
            queue.add(job_of(caller))
        elif step == "take" and len(queue):
            queue.take(next(iter(queue)))
        elif step == "remove" and own:
            queue.remove(own[-1])
        places = [queue.place(job) for job in queue]
        assert places == [Place(n, 10.0 * n) for n in range(1, len(queue) + 1)]


@given(st.lists(st.tuples(st.integers(-2, 2), st.floats(0, 300)), max_size=8))
def test_priority_is_worth_minutes(given: list[tuple[int, float]]) -> None:
    """A job goes as if it had come a minute earlier for each point; its place says so."""
    queue, jobs = Queue(Pace()), []
    for priority, created in sorted(given, key=lambda each: each[1]):
        jobs.append(job_of("a", priority))
        jobs[-1].since = created
        queue.add(jobs[-1])
    expected = sorted(jobs, key=lambda job: (job.since - POINT * job.priority, -job.priority))
    assert list(queue) == expected
    assert [queue.place(job) for job in expected] == [Place(n, None) for n in range(1, len(jobs) + 1)]


def test_turns_within_a_priority() -> None:
    """Who lowers all its jobs goes behind the others, who still take turns."""
    queue = Queue(Pace())
    for caller in "aabbc":
        queue.add(job_of(caller, -1 if caller == "a" else 0))
    assert order(queue) == "bcbaa"


def test_a_job_goes_before_another() -> None:
    """Of its own caller; other callers keep their turns, and one that comes back keeps its new place."""
    queue = Queue(Pace())
    jobs = [job_of(caller) for caller in "aabaa"]
    for since, job in enumerate(jobs):
        job.since = float(since)
        queue.add(job)
    first, second, other, third, fourth = jobs
    assert queue.let_before(fourth, second) == [fourth, second, third]
    assert list(queue) == [first, other, fourth, second, third]
    assert [queue.place(job) for job in queue] == [Place(n, None) for n in range(1, 6)]
    assert [job.since for job in (first, fourth, second, third)] == [0, 1, 3, 4]
    queue.remove(fourth)
    queue.put_back(fourth)
    assert list(queue) == [first, other, fourth, second, third]
    queue.let_before(first, third)
    assert [job for job in queue if job.caller == "a"] == [fourth, second, first, third]
