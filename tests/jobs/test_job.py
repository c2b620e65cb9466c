"""A job is its list of events: state, progress and result are read from it, and readers wake for each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.catalog.entry import Defaults, Entry
from gguf_imagegen.jobs.job import Ended, ImageReady, Job, JobEvent, PreviewReady, Queued, Started
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import Cancelled, GenerationFailed
from gguf_imagegen.vocabulary.events import Notice, Phase, PhaseChanged, Progress, Timings

TIMINGS = Timings(1, 2, 3, 6, 10)


def new_job(**fields: Any) -> Job:
    entry = Entry(
        id="m", family="ovis-image", files={"model": Path("m.gguf")}, defaults=Defaults(size=(128, 128))
    )
    request, warnings = parse_request({"prompt": "x", **fields})
    return Job(plan(request, entry, Settings(), "generation", warnings))


def told(*events: JobEvent, **fields: Any) -> Job:
    job = new_job(**fields)
    for event in events:
        job.publish(event)
    return job


def image(index: int) -> ImageReady:
    return ImageReady(index, 5 + index, f"{index}.png", 128, 128, TIMINGS)


def step(index: int, done: int, phase: Phase = "sampling") -> Progress:
    return Progress(index, phase, done, 10, 0.1)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        ((), "queued"),
        ((Queued(1, None),), "queued"),
        ((Queued(1, None), Started()), "running"),
        ((Started(), image(0)), "running"),
        ((Started(), image(0), Ended(None)), "succeeded"),
        ((Started(), Ended(GenerationFailed("no"))), "failed"),
        ((Queued(1, None), Ended(Cancelled("gone"))), "cancelled"),
    ],
)
def test_status(events: tuple[JobEvent, ...], status: str) -> None:
    """The status follows from the events alone; only the last one can end a job."""
    job = told(*events)
    assert job.status == status
    assert job.ended == (status in ("succeeded", "failed", "cancelled"))
    assert (job.ended_at is not None) == job.ended
    assert (job.error is not None) == (status in ("failed", "cancelled"))
    assert (job.started_at is not None) == any(isinstance(event, Started) for event in events)


def test_progress_rises_to_a_hundred() -> None:
    """Over two images progress never falls, is 100 only at the end, and each image is half."""
    events: list[JobEvent] = [
        Queued(1, None), Started(), PhaseChanged(0, "conditioning"), step(0, 0), step(0, 5), step(0, 10),
        step(0, 1, "decoding"), image(0), step(1, 0), step(1, 5), step(1, 10), image(1), Ended(None),
    ]  # fmt: skip
    job = new_job(n=2)
    seen = []
    for event in events:
        job.publish(event)
        seen.append(job.progress)
    assert seen == sorted(seen)
    assert seen[4] == pytest.approx(25)
    assert seen[7] == pytest.approx(50)
    assert seen[9] == pytest.approx(75)
    assert seen[-2] == 99
    assert [value for value in seen if value == 100] == [seen[-1]]


def test_a_second_pass_is_half() -> None:
    """With a second pass each of both counts for half of the image."""
    job = told(Started(), step(0, 10), hires={"scale": 2})
    assert job.progress == pytest.approx(50)
    job.publish(step(0, 5, "hires"))
    assert job.progress == pytest.approx(75)


def test_loading_is_no_progress_of_the_picture() -> None:
    """Tensors loaded do not count as steps made."""
    assert told(Started(), Progress(0, "loading", 9, 10, 0.0)).progress == 0


def test_a_failed_job_keeps_its_progress() -> None:
    """A failure at half way is not shown as finished."""
    job = told(Started(), step(0, 5), Ended(GenerationFailed("no")))
    assert job.progress == pytest.approx(50)


def test_the_latest_counts() -> None:
    """Progress is the newest event's; images and warnings are all of them, in order."""
    job = told(
        Queued(2, 9.0), Started(), step(0, 1), Notice("tiled"), image(0), step(1, 2), image(1), n=2, odd=1,
    )  # fmt: skip
    assert job.last_progress == step(1, 2)
    assert [ready.seed for ready in job.images] == [5, 6]
    assert job.warnings == ["unknown field 'odd' was ignored", "tiled"]
    assert job.times == sorted(job.times)
    assert len(job.times) == len(job.events)


def test_an_engine_says_little() -> None:
    """Of a hundred notices the first twenty, beside what was wrong with the request."""
    job = told(Started(), *[Notice(f"notice {number}") for number in range(100)], odd=1)
    assert len(job.warnings) == 1 + 20 + 1
    assert job.warnings[::21] == ["unknown field 'odd' was ignored", "… and 80 more"]


def test_dropped_previews_keep_their_numbers() -> None:
    """Freeing the pictures of previews leaves the list as long as it was, so that replay still fits."""
    job = told(Started(), PreviewReady(0, 1, 10, b"picture"), image(0), Ended(None))
    job.drop_previews()
    assert job.events == [Started(), PreviewReady(0, 1, 10, b""), image(0), Ended(None)]


def test_ids_are_unguessable() -> None:
    """Ids are unlike each other and fit a URL."""
    ids = {new_job().id for _ in range(50)}
    assert len(ids) == 50
    assert all(len(job_id) == 28 and job_id.replace("_", "").isalnum() for job_id in ids)


async def test_every_reader_wakes_for_every_event() -> None:
    """Three readers that started at different places see all events, in order, and the end."""
    job = new_job()
    job.publish(Queued(1, None))

    async def read(seen: int) -> list[JobEvent]:
        found = []
        while await job.more_than(seen, timeout=10):
            found.append(job.events[seen])
            seen += 1
        return found

    readers = [asyncio.create_task(read(start)) for start in (0, 0, 1)]
    waiter = asyncio.create_task(job.wait())
    for event in (Started(), step(0, 1), image(0), Ended(None)):
        await asyncio.sleep(0)
        job.publish(event)
    assert [await reader for reader in readers] == [job.events, job.events, job.events[1:]]
    await asyncio.wait_for(waiter, 10)


async def test_waiting_ends_in_time() -> None:
    """No event within the time is False, for a heartbeat; after the end there is nothing to wait for."""
    job = told(Started())
    assert not await job.more_than(1, timeout=0.01)
    job.publish(Ended(None))
    assert await job.more_than(1, timeout=10)
    assert not await job.more_than(2)
    await asyncio.wait_for(job.wait(), 10)
