"""Placement: nobody starves, callers take turns, and models stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_imagegen.pool.placement import POINT, Assignment, LaneView, Rules, Waiting, place

MODELS = ("a", "b", "c", None)
RULES = Rules(swap_after=10)

keys = st.frozensets(st.sampled_from(MODELS[:3]))
lane_views = st.lists(
    st.builds(
        LaneView, name=st.just(""), idle=st.booleans(), holds=keys, paused=st.booleans(), refuses=keys,
        loaded=st.integers(0, 3), used=st.floats(0, 100),
    ),
    max_size=4,
).map(lambda lanes: [replace(lane, name=str(number)) for number, lane in enumerate(lanes)])  # fmt: skip
times = st.lists(st.integers(0, 40), max_size=12).map(sorted)


@st.composite
def waiting_jobs(draw: st.DrawFn, callers: str = "xyz") -> list[Waiting]:
    return [
        Waiting(
            str(number),
            draw(st.sampled_from(MODELS)),
            since,
            draw(st.sampled_from(callers)),
            draw(st.integers(-1, 1)),
        )
        for number, since in enumerate(draw(times))
    ]


def placed(waiting: Sequence[Waiting], *lanes: LaneView, now: float = 0) -> dict[str, str]:
    return {each.job.id: each.lane for each in place(waiting, lanes, now, RULES)}


def jobs(*models: str | None, since: float = 0) -> list[Waiting]:
    return [Waiting(str(number), model, since) for number, model in enumerate(models)]


@given(waiting_jobs(), lane_views, st.dictionaries(st.sampled_from("xyz"), st.floats(0, 40)))
def test_each_job_and_each_idle_lane_once(
    waiting: list[Waiting], lanes: list[LaneView], served: dict[str, float]
) -> None:
    """No job twice, no busy lane, no engine started on a paused lane, nothing where it was refused."""
    found = place(waiting, lanes, 40, Rules(10, served))
    views = {lane.name: lane for lane in lanes}
    assert len({each.job.id for each in found}) == len({each.lane for each in found}) == len(found)
    for each in found:
        lane = views[each.lane]
        assert each.job in waiting
        assert lane.idle
        assert lane.ready(each.job) or (not lane.paused and each.job.model not in lane.refuses)


def as_one_lane(waiting: Sequence[Waiting], lane: LaneView, now: float) -> Waiting | None:
    """The job due first; while it has not waited long, one that needs no load; in a pause only such a one."""
    waiting = sorted(waiting, key=lambda job: (job.due, -job.priority))
    job = next(iter(waiting), None)
    if job and (lane.paused or now - job.due < RULES.swap_after):
        job = next(filter(lane.ready, waiting), None if lane.paused else job)
    return job


@given(waiting_jobs(callers="x"), keys, st.booleans(), st.integers(0, 50))
def test_one_lane(waiting: list[Waiting], holds: frozenset[str], paused: bool, now: int) -> None:
    """It is as simple as that."""
    lane = LaneView("only", holds=holds, paused=paused, loaded=len(holds))
    found = place(waiting, [lane], now, RULES)
    chosen = as_one_lane(waiting, lane, now)
    assert found == ([Assignment(chosen, "only")] if chosen else [])


@dataclass
class Lane:
    """A simulated lane with room for one model, which works for `ends - now` seconds."""

    name: str
    model: str | None = None
    ends: float = 0.0
    used: float = 0.0
    loads: int = 0

    def view(self, now: float) -> LaneView:
        holds = frozenset([self.model] if self.model else [])
        return LaneView(self.name, self.ends <= now, holds, loaded=len(holds), used=self.used)


@given(st.integers(1, 4), st.integers(1, 5), st.data())
def test_nobody_starves(count: int, seconds: int, data: st.DataObject) -> None:
    """While others flood the queue with jobs for models in memory, each job begins in bounded time."""
    lanes = [Lane(str(number)) for number in range(count)]
    waiting = [Waiting("victim", "c", 0, data.draw(st.sampled_from("xz")))]
    served: dict[str, float] = {}
    for now in range(120):
        models = data.draw(st.lists(st.sampled_from("ab"), min_size=count, max_size=count + 2))
        waiting += [Waiting(f"{now}.{number}", model, now, "x") for number, model in enumerate(models)]
        views = [lane.view(now) for lane in lanes]
        for each in place(waiting, views, now, Rules(RULES.swap_after, served)):
            waiting.remove(each.job)
            served[each.job.caller] = now
            lane = lanes[int(each.lane)]
            lane.model, lane.ends, lane.used = each.job.model, now + seconds, now
        if all(job.id != "victim" for job in waiting):
            return
        if now > RULES.swap_after + 2 * seconds + 1:
            raise AssertionError("it waits for ever")


@settings(max_examples=20)
@given(st.integers(1, 3), st.data())
def test_no_priority_starves_another(count: int, data: st.DataObject) -> None:
    """While others keep every lane busy with jobs of higher priority, each job begins once it is due."""
    lanes = [Lane(str(number)) for number in range(count)]
    waiting = [Waiting("victim", "c", 0, data.draw(st.sampled_from("xz")), -1)]
    served: dict[str, float] = {}
    for now in range(int(2 * POINT + RULES.swap_after) + 3):
        flood = data.draw(st.sampled_from([0, 1]))
        waiting += [Waiting(f"{now}.{number}", "a", now, "x", flood) for number in range(count)]
        views = [lane.view(now) for lane in lanes]
        for each in place(waiting, views, now, Rules(RULES.swap_after, served)):
            waiting.remove(each.job)
            served[each.job.caller] = now
            lane = lanes[int(each.lane)]
            lane.model, lane.ends, lane.used = each.job.model, now + 1, now
    assert all(job.id != "victim" for job in waiting)


def test_priority_goes_first() -> None:
    """At once, where the model is in memory; a minute's wait makes up for a point."""
    lane = LaneView("0", holds=frozenset("a"), loaded=1)
    old, raised, lowered = (
        Waiting("old", "a", 0),
        Waiting("up", "a", 50, "", 1),
        Waiting("down", "a", 0, "", -1),
    )
    assert placed([old, lowered, raised], lane, now=50) == {"up": "0"}
    assert placed([old, lowered, replace(raised, since=61)], lane, now=61) == {"old": "0"}
    assert placed([lowered, replace(old, since=59)], lane, now=61) == {"old": "0"}
    assert placed([lowered, replace(old, since=61)], lane, now=61) == {"down": "0"}


def test_memory_is_short_for_the_oldest() -> None:
    """A model that fits only when others have left keeps idle lanes free for it, once it has waited."""
    waiting = [*jobs("c"), Waiting("new", "a", 9)]
    busy = LaneView("0", idle=False, holds=frozenset("b"), loaded=1)
    refuses = LaneView("1", holds=frozenset("a"), refuses=frozenset("c"), loaded=1)
    assert placed(waiting, busy, refuses, now=9) == {"new": "1"}
    assert placed(waiting, busy, refuses, now=10) == {}
    assert placed(waiting, replace(busy, idle=True), refuses, now=10) == {"0": "0", "new": "1"}


def test_callers_take_turns() -> None:
    """One with ten jobs and one with two that came later: the latter do not wait for all ten."""
    many = [Waiting(f"x{number}", "a", number, "x") for number in range(10)]
    waiting = [*many, Waiting("y0", "a", 20, "y"), Waiting("y1", "a", 21, "y")]
    lane, order = LaneView("0", holds=frozenset("a"), loaded=1), []
    served: dict[str, float] = {}
    for now in range(30, 42):
        (found,) = place(waiting, [lane], now, Rules(10, served))
        waiting.remove(found.job)
        served[found.job.caller] = float(now)
        order.append(found.job.id)
    assert order == ["x0", "y0", "x1", "y1", *(f"x{number}" for number in range(2, 10))]


def test_a_model_stays_where_it_is() -> None:
    """Alternating jobs for two models, each held by a lane, swap nothing."""
    a, b = LaneView("0", holds=frozenset("a"), loaded=1), LaneView("1", holds=frozenset("b"), loaded=1)
    assert placed(jobs("b", "a"), a, b) == {"0": "1", "1": "0"}
    assert placed(jobs("b", "b"), a, replace(b, idle=False)) == {"0": "0"}, "two wait for the one that has it"
    assert placed(jobs("b"), a, replace(b, idle=False)) == {}, "it waits for the lane that has it"
    assert placed(jobs("b"), a, replace(b, idle=False), now=10) == {"0": "0"}, "but not for ever"


def simulated(waiting: list[Waiting], count: int, seconds: float) -> list[Lane]:
    """All jobs done by lanes that are empty at first; `loads` counts the models of each."""
    lanes, now = [Lane(str(number)) for number in range(count)], 0.0
    while waiting:
        for each in place(waiting, [lane.view(now) for lane in lanes], now, RULES):
            waiting.remove(each.job)
            lane = lanes[int(each.lane)]
            lane.loads += lane.model != each.job.model
            lane.model, lane.ends, lane.used = each.job.model, now + seconds, now
        now = min(lane.ends for lane in lanes if lane.ends > now)
    return lanes


@pytest.mark.parametrize("seconds", [0.1, 1, 5, 30])
def test_a_long_queue_for_two_models_loads_each_lane_once(seconds: float) -> None:
    """However long the jobs wait: half of the lanes for each, and no lane swaps to and fro."""
    lanes = simulated(jobs(*"ab" * 50), 4, seconds)
    assert sorted(lane.model or "" for lane in lanes) == ["a", "a", "b", "b"]
    assert sum(lane.loads for lane in lanes) == 4


def test_a_late_job_takes_a_lane_from_a_model_for_which_fewer_wait() -> None:
    """Counted for each lane, and without the lane that would be lost."""
    a, b = (LaneView(name, holds=frozenset(name), loaded=1) for name in "ab")
    busy = replace(a, name="busy", idle=False)
    other = replace(b, name="other", idle=False)
    assert placed(jobs("a", "b", "a", "a", "a"), busy, b, other, now=10) == {"0": "b"}
    assert placed(jobs("a", "b", "b", "b", "a"), busy, b, other, now=10) == {"1": "b"}
    assert placed(jobs("a", "a", "b"), busy, b, now=10) == {"2": "b"}, "the only lane with it"


def test_files_that_are_on_a_busy_lane_hold_up_nobody() -> None:
    """Its job is late, and memory is not what is short."""
    waiting = [Waiting("0", "c", 0, needs="c"), Waiting("1", "a", 5)]
    there, idle = LaneView("there", idle=False), LaneView("idle", lacks=frozenset("c"))
    assert placed(waiting, there, idle, now=50) == {"1": "idle"}


def test_an_empty_lane_is_used() -> None:
    """Another copy costs nobody anything there; a paused lane takes only what its engines hold."""
    a, empty = LaneView("0", holds=frozenset("a"), loaded=1), LaneView("1")
    assert placed(jobs("a", "a"), a, empty) == {"0": "0", "1": "1"}
    assert placed(jobs("a", "a"), replace(a, paused=True), replace(empty, paused=True)) == {"0": "0"}
    assert placed(jobs("c"), a, empty) == {"0": "1"}
    assert placed(jobs(None), a, empty) == {"0": "0"}


def test_the_least_recently_used_lane_swaps() -> None:
    """Where no lane is empty."""
    lanes = [LaneView(str(n), holds=frozenset(m), loaded=1, used=u) for n, m, u in ((0, "a", 5), (1, "b", 3))]
    assert placed(jobs("c"), *lanes) == {"0": "1"}


def test_ten_thousand_wait() -> None:
    """Looking at all of them for each of many lanes would take minutes."""
    waiting = [Waiting(str(number), "ab"[number % 2], 0) for number in range(10_000)]
    lanes = [LaneView(str(number), holds=frozenset("c"), loaded=1) for number in range(64)]
    assert len(place(waiting, lanes, 0, RULES)) == 64


def test_a_job_waits_for_a_lane_that_has_its_files() -> None:
    """However late it is, and without holding up those whose files are there."""
    waiting = [Waiting("0", "a", 0, needs="a"), Waiting("1", "b", 1, needs="b")]
    here, there = LaneView("here", lacks=frozenset("a")), LaneView("there", lacks=frozenset("b"))
    assert placed(waiting, here, there, now=50) == {"0": "there", "1": "here"}
    assert placed(waiting, here, now=50) == {"1": "here"}


def test_a_younger_job_goes_first_where_its_add_on_is() -> None:
    """Of one model, too, whether it is in memory or has to be loaded."""
    waiting = [Waiting("0", "a", 0, needs="a + lora"), Waiting("1", "a", 1, needs="a")]
    plain = LaneView("plain", lacks=frozenset({"a + lora"}))
    busy = LaneView("busy", idle=False)
    for lane in (plain, replace(plain, holds=frozenset("a"))):
        assert placed(waiting, lane, busy, now=2) == {"1": "plain"}
