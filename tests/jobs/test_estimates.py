"""Estimates come from what was measured, model by model, and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.catalog.entry import Defaults, Entry
from gguf_imagegen.jobs.estimates import WEIGHT, Pace
from gguf_imagegen.planning.plan import Plan, plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.events import Progress, Timings


def job_plan(model: str = "m", **fields: Any) -> Plan:
    """Ten steps of 1024x1024 unless said otherwise."""
    entry = Entry(
        id=model,
        family="flux",
        files={"model": Path("m.gguf")},
        defaults=Defaults(steps=10, size=(1024, 1024)),
    )
    request, _ = parse_request({"prompt": "x", **fields})
    return plan(request, entry, Settings(), "generation", [])


def took(sampling: float, around: float, steps: int = 10) -> Timings:
    """Seconds of sampling and of everything else."""
    return Timings(0, sampling * 1000, 0, (sampling + around) * 1000, steps)


def test_nothing_measured_is_no_estimate() -> None:
    """Without a measurement there is no ETA, rather than a guess; other models teach nothing."""
    pace = Pace()
    assert pace.image_seconds(job_plan()) is None
    assert pace.job_seconds(job_plan(n=3)) is None
    pace.learn(job_plan("other"), took(10, 1))
    assert pace.image_seconds(job_plan()) is None


def test_the_same_job_takes_as_long_again() -> None:
    """One measurement predicts its own repetition exactly, and n images take n times as long."""
    pace = Pace()
    pace.learn(job_plan(), took(20, 3))
    assert pace.image_seconds(job_plan()) == pytest.approx(23)
    assert pace.job_seconds(job_plan(n=4)) == pytest.approx(4 * 23)
    assert pace.job_seconds(job_plan(n=4), done=3) == pytest.approx(23)
    third = Progress(2, "sampling", 5, 10, 2.0)
    assert pace.job_seconds(job_plan(n=4), third, done=0) == pytest.approx(10 + 3 + 23)


def test_steps_and_pixels_scale_the_sampling_only() -> None:
    """Twice the steps or pixels doubles the sampling; what is around it stays."""
    pace = Pace()
    pace.learn(job_plan(), took(20, 3))
    assert pace.image_seconds(job_plan(steps=20)) == pytest.approx(43)
    assert pace.image_seconds(job_plan(size="1024x2048")) == pytest.approx(43)
    assert pace.image_seconds(job_plan(size="512x512")) == pytest.approx(8)
    assert pace.image_seconds(job_plan(size="512x512", hires={"steps": 10})) == pytest.approx(13)


def test_new_measurements_count_by_their_weight() -> None:
    """The second one replaces the first, which filled caches; then the average moves, near after many."""
    pace = Pace()
    pace.learn(job_plan(), took(50, 5))
    pace.learn(job_plan(), took(10, 0))
    assert pace.image_seconds(job_plan()) == pytest.approx(10)
    pace.learn(job_plan(), took(20, 0))
    assert pace.image_seconds(job_plan()) == pytest.approx(10 + WEIGHT * 10)
    for _ in range(30):
        pace.learn(job_plan(), took(20, 0))
    assert pace.image_seconds(job_plan()) == pytest.approx(20, rel=0.01)


def test_work_that_is_alike_has_a_pace_of_its_own() -> None:
    """A size that was measured is estimated by that, however others scale; so is guidance, which costs."""
    pace = Pace()
    for _ in range(2):
        pace.learn(job_plan(), took(20, 3))
        pace.learn(job_plan(size="512x512"), took(10, 1))
        pace.learn(job_plan(size="512x512", decoder=None, step_cache="easycache"), took(4, 1))
    assert pace.image_seconds(job_plan()) == pytest.approx(23)
    assert pace.image_seconds(job_plan(size="512x512")) == pytest.approx(11)
    assert pace.image_seconds(job_plan(size="512x512", steps=5)) == pytest.approx(6)
    assert pace.image_seconds(job_plan(size="512x512", step_cache="easycache")) == pytest.approx(5)


def test_loads_are_measured_by_model() -> None:
    """The latest load of a model predicts the next one."""
    pace, entry = Pace(), job_plan().entry
    assert pace.load_seconds(entry) is None
    pace.learn_load(entry, 7.0)
    pace.learn_load(entry, 5.0)
    assert pace.load_seconds(entry) == pytest.approx(5)
    assert pace.load_seconds(job_plan("other").entry) is None


def test_no_steps_teach_no_speed() -> None:
    """A measurement without steps divides by nothing."""
    pace = Pace()
    pace.learn(job_plan(), took(0, 5, steps=0))
    assert pace.image_seconds(job_plan()) is None


def test_a_running_sampling_knows_better() -> None:
    """The engine's own speed replaces the average for the rest of this image, even before any was made."""
    progress = Progress(0, "sampling", 4, 10, 0.5)
    pace = Pace()
    assert pace.job_seconds(job_plan(), progress) == pytest.approx(3)
    assert pace.job_seconds(job_plan(n=3), progress) == pytest.approx(3 + 2 * 5)
    pace.learn(job_plan(), took(20, 1))
    assert pace.job_seconds(job_plan(n=3), progress) == pytest.approx(3 + 1 + 2 * 21)
    assert pace.job_seconds(job_plan(n=3), progress, done=2) == pytest.approx(3 + 1)
    assert pace.job_seconds(job_plan(), Progress(0, "sampling", 0, 10, 0.0)) == pytest.approx(21)


def test_each_kind_of_lane_has_its_pace() -> None:
    """What a GPU does says nothing of the CPU; a job that waits gets what all lanes do on average."""
    pace = Pace(["cuda", "cpu", "cpu"])
    pace.learn(job_plan(), took(10, 0), "cuda")
    assert (pace.image_seconds(job_plan(), "cpu"), pace.image_seconds(job_plan())) == (None, 10)
    pace.learn(job_plan(), took(40, 0), "cpu")
    assert [pace.job_seconds(job_plan(n=2), kind=kind) for kind in ("cuda", "cpu")] == [20, 80]
    assert pace.image_seconds(job_plan()) == pytest.approx(3 / (1 / 10 + 1 / 40 + 1 / 40))
