"""A cluster without Ray: its nodes' ends of the lanes run here, and are handed what Ray carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gguf_imagegen import __version__
from gguf_imagegen.pool.ray import messages
from gguf_imagegen.pool.ray.actor import EngineActor
from gguf_imagegen.pool.ray.cluster import Cluster
from gguf_imagegen.pool.ray.messages import (
    WIRE,
    Drop,
    FromLane,
    LaneDown,
    LaneUp,
    NodeGone,
    NodeSeen,
    Offer,
    OfferedDevice,
    Release,
    ToLane,
    Wish,
    Word,
)
from gguf_imagegen.pool.ray.node_settings import PULL
from gguf_imagegen.vocabulary.waits import Waits
from tests.conftest import App, runner_of
from tests.pool.ray.conftest import until

ALONE = {"cluster": "127.0.0.1:9", "insecure_cluster": True, "devices": ("none",)}
"""Port 9 takes no connection."""


class NearLane:
    """An actor on a node; what it has said, and whether it is frozen."""

    def __init__(self, id: str, cluster: Cluster) -> None:
        self.id = id
        self.said: list[Word] = []
        self._cluster = cluster
        self._actor = EngineActor(0)
        self._orders: asyncio.Queue[bytes] = asyncio.Queue()
        self._going = asyncio.Event()
        self._going.set()
        self._work = [asyncio.create_task(each) for each in (self._read(), self._tell())]

    def take(self, order: bytes) -> None:
        self._orders.put_nowait(order)

    def freeze(self) -> None:
        self._going.clear()

    def wake(self) -> None:
        self._going.set()

    def die(self) -> None:
        for task in self._work:
            task.cancel()

    async def _read(self) -> None:
        async for batch in self._actor.events():
            await self._going.wait()
            self.said += messages.words_of(batch)
            self._cluster.take(FromLane(self.id, batch))

    async def _tell(self) -> None:
        while True:
            order = await self._orders.get()
            await self._going.wait()
            await self._actor.tell(order)


class Near:
    """A server, and nodes that a test adds; these read what they are started with from the environment."""

    def __init__(self, app: App, patch: pytest.MonkeyPatch) -> None:
        self.app = app
        self.lanes: dict[str, NearLane] = {}
        self.released: list[str] = []
        """Nodes whose lanes are to end."""
        self._patch = patch
        assert app.service.cluster is not None
        self.cluster = app.service.cluster
        self.cluster.send = self._take

    def node(
        self, name: str, models: Path, backend: str = "Tints", *, pulls: bool = False, **settings: Any
    ) -> NearLane:
        """One with one device; `lora_dir=…` and the like are its own."""
        for field in ("lora_dir", "upscaler_dir", "control_dir", "embedding_dir"):
            self._patch.delenv(f"GGUF_IMAGEGEN_{field.upper()}", raising=False)
        engines = backend if backend == "sdcpp" else f"tests.far_engines:{backend}"
        values = {"models_dir": models, "backend": engines, "node_name": name, "threads": 1, **settings}
        self._patch.setenv(PULL, "1" if pulls else "")
        for field, value in values.items():
            self._patch.setenv(f"GGUF_IMAGEGEN_{field.upper()}", str(value))
        devices = [OfferedDevice("cpu", 1, None, 1 << 40, None)]
        offer = Offer(WIRE, __version__, name, devices=devices, pulls=pulls)
        self.cluster.take(NodeSeen(name, f"{name}.local", msgspec.json.encode(offer)))
        made = self.lanes[name] = NearLane(name, self.cluster)
        self.cluster.take(LaneUp(name, name, 0))
        return made

    async def ready(self, name: str) -> None:
        """Until the server knows what lies there."""

        def knows() -> bool:
            return any(lane.name == f"{name}/cpu" and lane.stock.models for lane in self.far)

        await until(knows, f"the stock of {name}")

    @property
    def far(self) -> list[Any]:
        return list(self.app.service.pool.lanes)

    def kill(self, name: str) -> None:
        """Its actor."""
        self.lanes[name].die()
        self.cluster.take(LaneDown(name, "its actor died"))

    def lose(self, name: str) -> None:
        """The whole node."""
        self.lanes[name].die()
        self.cluster.take(NodeGone(name, "its node left the cluster"))

    @property
    def said(self) -> list[Word]:
        """By all lanes."""
        return [word for lane in self.lanes.values() for word in lane.said]

    def _take(self, wish: Wish) -> None:
        match wish:
            case ToLane():
                self.lanes[wish.lane].take(wish.order)
            case Release():
                self.released.append(wish.node)
            case Drop():
                pass


@asynccontextmanager
async def near_cluster(
    patch: pytest.MonkeyPatch, empty: Path, *, waits: Waits | None = None, **settings: Any
) -> AsyncIterator[Near]:
    """A server without devices, whose models folder this empty one is, unless another is named."""
    made: Near | None = None
    waits = waits or Waits(cluster_again=3600)
    try:
        async with runner_of(empty)(**ALONE, waits=waits, any_model=True, **settings) as app:
            made = Near(app, patch)
            await until(lambda: made.cluster.status == "failed", "that nobody answers at that port")
            yield made
    finally:
        for lane in made.lanes.values() if made else ():
            lane.die()
