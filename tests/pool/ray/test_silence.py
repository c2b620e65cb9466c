"""Whatever dies or hangs in a cluster: who listens hears something, and silent lanes are given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientResponse
from pydantic import ValidationError

from gguf_imagegen.pool.ray import actor, cluster
from gguf_imagegen.pool.ray.messages import Away
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.waits import USUAL, Waits
from tests.api.client import DONE, GENERATIONS, SMALL, Event, read_block
from tests.conftest import App
from tests.pool.ray.conftest import until
from tests.pool.ray.near import Near, near_cluster

pytestmark = pytest.mark.posix

HEARTBEAT = 0.05
FEW_SECONDS = Waits(cluster_again=3600, silent_lane=3)


class Listener:
    """What has come of a stream so far."""

    def __init__(self) -> None:
        self.beats = 0
        self.longest = 0.0
        """Seconds without a byte."""
        self.comments: list[str] = []
        self.events: list[Event] = []

    async def listen(self, answer: ClientResponse) -> None:
        text, at = "", time.monotonic()
        async for data in answer.content.iter_any():
            self.longest, at = max(self.longest, time.monotonic() - at), time.monotonic()
            *blocks, text = (text + data.decode()).split("\n\n")
            for block in map(read_block, blocks):
                if isinstance(block, Event):
                    self.events.append(block)
                elif block == "hb" or block.startswith("queued"):
                    self.beats += 1
                else:
                    self.comments.append(block)

    async def hears_on(self) -> None:
        """Something more, and again."""
        heard = self.beats
        await until(lambda: self.beats >= heard + 3, "something more")


@asynccontextmanager
async def listening(app: App, **fields: object) -> AsyncIterator[Listener]:
    body = {**SMALL, "steps": 4, "stream": True, "partial_images": 0, **fields}
    async with app.session.post(app.url + GENERATIONS, json=body) as answer:
        assert answer.status == 200
        made = Listener()
        reading = asyncio.create_task(made.listen(answer))
        try:
            yield made
        finally:
            reading.cancel()


def freeze(near: Near) -> None:
    near.lanes["a"].freeze()


DEATHS: dict[str, Callable[[Near], None]] = {
    "its actor dies": lambda near: near.kill("a"),
    "its node leaves": lambda near: near.lose("a"),
    "it is frozen": freeze,
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
async def test_a_stream_is_never_silent(
    death: Callable[[Near], None], model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an engine hangs, after its lane is gone and while there is no lane; then the picture comes."""
    async with near_cluster(monkeypatch, tmp_path, waits=FEW_SECONDS, heartbeat=HEARTBEAT) as near:
        near.node("a", model_dir, "Hangs")
        await near.ready("a")
        async with listening(near.app, seed=9) as heard:
            await until(lambda: any(words.startswith("progress") for words in heard.comments), "a step")
            await heard.hears_on()
            near.cluster.take(Away("the head is busy"))
            await heard.hears_on()
            death(near)
            await until(lambda: not near.app.service.pool.lanes, "the loss of the lane")
            await heard.hears_on()
            near.node("b", model_dir)
            await until(lambda: heard.events and heard.events[-1].data == DONE, "the picture")
        (job,) = near.app.scheduler.jobs.values()
    assert any("was lost" in words for words in job.warnings)
    assert len(heard.events) == 2


async def test_what_a_lost_lane_says_is_refused(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a frozen lane had to say when it wakes is counted, and reaches nobody."""
    async with near_cluster(monkeypatch, tmp_path, waits=FEW_SECONDS) as near:
        frozen = near.node("a", model_dir, "Slows")
        await near.ready("a")
        making = asyncio.create_task(near.app.post(GENERATIONS, **{**SMALL, "steps": 40}, seed=41))
        await until(lambda: near.app.scheduler.running and near.app.scheduler.running[0].progress, "a step")
        frozen.freeze()
        await until(lambda: not near.app.service.pool.lanes, "the loss of the lane")
        near.node("b", model_dir)
        assert (await making)[0] == 200
        (job,) = near.app.scheduler.jobs.values()
        events, late = len(job.events), near.cluster.late
        frozen.wake()
        await until(lambda: near.cluster.late > late, "late events")
        assert len(job.events) == events
        assert [lost.why for lost in near.cluster.lost] == ["it was silent for 3 s"]


def test_ten_seconds_are_never_over() -> None:
    """A stream's heartbeat cannot be longer; a lane beats four times until it is given up, before that."""
    with pytest.raises(ValidationError):
        Settings(heartbeat=10.1)
    assert USUAL.silent_lane + 2 * cluster.LOOK < 10
    assert USUAL.silent_lane >= 4 * actor.BEAT
