"""What a lane says reaches the attempt that it is of, and no other."""

from __future__ import annotations

import asyncio

import pytest

from gguf_imagegen.pool.ray import messages
from gguf_imagegen.pool.ray.engine import Line
from gguf_imagegen.pool.ray.messages import Close, Closed, Do, Order, Over, Told
from gguf_imagegen.vocabulary.engine import Read
from gguf_imagegen.vocabulary.errors import WorkerCrashed, WorkerKilled
from gguf_imagegen.vocabulary.events import EngineEvent, Notice

TASK = Read(b"", 1)


class Far:
    """A line, what was sent over it, and how often something came too late."""

    def __init__(self) -> None:
        self.sent: list[Order] = []
        self.late = 0
        self.line = Line("n/cpu", self.sent.append, self._count)

    def _count(self) -> None:
        self.late += 1

    @property
    def run(self) -> int:
        last = self.sent[-1]
        assert isinstance(last, Do)
        return last.run

    def tell(self, words: str, run: int | None = None) -> None:
        self.line.take(Told(self.run if run is None else run, messages.packed(Notice(words))))


async def test_events_of_an_older_attempt_are_refused() -> None:
    """The second run hears nothing of the first one's late events, which are counted."""
    far = Far()
    engine = far.line.new_engine()
    heard: list[EngineEvent] = []
    for words in ("first", "second"):
        events = engine.run(TASK)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        if words == "second":
            far.tell("late", run=far.run - 1)
        far.tell(words)
        heard.append(await waiting)
        far.line.take(Over(far.run))
        assert [event async for event in events] == []
    assert heard == [Notice("first"), Notice("second")]
    assert far.late == 1


async def test_a_lost_lane_ends_what_it_did() -> None:
    """As a killed engine does, so that the job is given to another lane; nothing can be begun there."""
    far = Far()
    engine = far.line.new_engine()
    events = engine.run(TASK)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    far.line.lose("silent")
    with pytest.raises(WorkerKilled, match=r"n/cpu was lost \(silent\)"):
        await waiting
    assert not engine.alive
    with pytest.raises(WorkerKilled):
        await anext(far.line.new_engine().run(TASK))
    await engine.close()


async def test_closing_an_engine_ends_its_run_at_once() -> None:
    """Whoever closes it waits for the lane to say that it is gone; whoever waits for its events does not."""
    far = Far()
    engine = far.line.new_engine()
    waiting = asyncio.ensure_future(anext(engine.run(TASK)))
    await asyncio.sleep(0)
    closing = asyncio.create_task(engine.close())
    with pytest.raises(WorkerCrashed, match="closed"):
        await waiting
    assert not closing.done()
    order = far.sent[-1]
    assert isinstance(order, Close)
    far.line.take(Closed(order.engine))
    await closing
