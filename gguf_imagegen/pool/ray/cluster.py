"""A cluster as the server sees it: nodes and lanes that come and go, and what became of those that went."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from msgspec.structs import replace

from gguf_imagegen.catalog.catalog import Catalog
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.pool.pool import Pool
from gguf_imagegen.pool.ray import messages
from gguf_imagegen.pool.ray.driver import Driver
from gguf_imagegen.pool.ray.engine import Line
from gguf_imagegen.pool.ray.files import Known
from gguf_imagegen.pool.ray.lane import FarLane
from gguf_imagegen.pool.ray.messages import (
    Away,
    Beat,
    Drop,
    FromLane,
    Joined,
    LaneDown,
    LaneUp,
    NodeGone,
    NodeSeen,
    Offer,
    Order,
    Release,
    Report,
    Stock,
    ToLane,
    Wish,
)
from gguf_imagegen.pool.ray.nodes import ClusterFailed
from gguf_imagegen.pool.ray.offer import read_offer
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest, NotFound
from gguf_imagegen.vocabulary.waits import USUAL, Waits

log = logging.getLogger(__name__)

LOOK: Final = 0.5
"""Seconds between two looks for lanes that are silent, and for nodes that are drained."""
STALLED: Final = 3.0
"""Seconds late at which it was this process that stood still."""
REMEMBERED: Final = 20
"""Lost lanes that can be looked at."""

Status = Literal["joining", "joined", "away", "failed"]
NodeStatus = Literal["ready", "starting", "draining", "drained", "refused"]


@dataclass(frozen=True)
class Lost:
    """A lane that ended; `at` is seconds since the epoch."""

    lane: str
    why: str
    at: float


@dataclass
class Node:
    """A node that offers devices; `offer` None: it was refused, and `why` says it."""

    id: str
    host: str
    offer: Offer | None
    why: str = ""
    draining: bool = False
    lanes: dict[str, FarLane] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.offer.name if self.offer else self.host

    @property
    def status(self) -> NodeStatus:
        if self.offer is None:
            return "refused"
        if self.draining:
            return "draining" if self.lanes else "drained"
        return "ready" if self.lanes else "starting"


class Cluster:
    """Adds lanes to the pool and removes them, as nodes come and go; `state` is the server's own folder."""

    def __init__(
        self,
        settings: Settings,
        catalog: Catalog,
        pool: Pool,
        state: Path | None = None,
        waits: Waits = USUAL,
    ) -> None:
        self.status: Status = "joining"
        self.why = ""
        """What is wrong, unless all is well."""
        self.nodes: dict[str, Node] = {}
        self.lost: deque[Lost] = deque(maxlen=REMEMBERED)
        self.losses: Counter[str] = Counter()
        """How many lanes were lost, by why."""
        self.late = 0
        """Events of attempts that were over already."""
        self._settings = settings
        self._pool = pool
        self._known = Known(catalog)
        self._waits = waits
        self._lanes: dict[str, FarLane] = {}
        self._heard: dict[str, float] = {}
        self._driver = Driver(settings, state, self.take)
        self.send: Callable[[Wish], None] = self._driver.send
        """Where orders go."""

    @property
    def address(self) -> str:
        return self._driver.address

    async def run(self) -> None:
        """Be in the cluster until cancelled; whatever ends is begun again."""
        watch = asyncio.create_task(self._watch())
        try:
            while True:
                try:
                    why = await self._driver.run()
                except ClusterFailed as exc:
                    why = exc.message
                except Exception:  # the server must live without a cluster; the log has the trace
                    log.exception("internal error in the cluster")
                    why = "internal error; the server's log has the details"
                self._fail(why)
                await asyncio.sleep(self._waits.cluster_again)
        finally:
            watch.cancel()
            self._lose_all("the server is shutting down")
            await self._driver.stop()

    def drain(self, name: str) -> Node:
        """Give this node no more work, and its memory back when it has done what it does."""
        node = next((node for node in self.nodes.values() if name in (node.name, node.id)), None)
        if node is None:
            there = ", ".join(sorted(node.name for node in self.nodes.values())) or "none"
            raise NotFound(f"there is no node {name[:100]!r}; there are: {there}", param="node")
        if node.offer is None:
            raise InvalidRequest(f"{node.name} has no lanes: {node.why}", param="node")
        self._drain(node)
        return node

    # -- what the bridge reports ----------------------------------------------------------------------

    def take(self, report: Report) -> None:
        """Called with each, in order."""
        match report:
            case FromLane():
                self._hear(report)
            case Joined():
                self.status, self.why = "joined", ""
                log.info("in the cluster at %s; join it with gguf-imagegen node --head", report.address)
            case Away():
                self.status, self.why = "away", report.why
                log.warning("cluster: %s; its lanes go on", report.why)
            case NodeSeen():
                self._meet(report)
            case NodeGone():
                if node := self.nodes.pop(report.node, None):
                    for lane in list(node.lanes):
                        self._lose(lane, report.why)
                    log.info("node %s: %s", node.name, report.why)
            case LaneUp():
                self._add(report)
            case LaneDown() if report.lane in self._lanes:
                self._lose(report.lane, report.why)
            case LaneDown():
                log.debug("lane %s did not start, or was given up: %s", report.lane, report.why)

    def _meet(self, seen: NodeSeen) -> None:
        if not seen.why:
            offer = read_offer(seen.offer)
            self.nodes[seen.node] = Node(seen.node, seen.host, self._named(offer, seen.node))
            log.info("node %s offers %d device(s)", self.nodes[seen.node].name, len(offer.devices))
            return
        known = self.nodes.get(seen.node)
        if known is None or known.why != seen.why:
            log.warning("node %s is not used: %s", seen.host, seen.why)
            self.nodes[seen.node] = Node(seen.node, seen.host, None, seen.why)

    def _named(self, offer: Offer, id: str) -> Offer:
        """With a name that no other node has."""
        taken = {node.name for node in self.nodes.values() if node.id != id}
        if offer.name not in taken:
            return offer
        return replace(offer, name=f"{offer.name}-{id[:6]}")

    def _add(self, up: LaneUp) -> None:
        node = self.nodes.get(up.node)
        if node is None or node.offer is None:
            return
        name = f"{node.name}/{node.offer.devices[up.device].name}"
        line = Line(name, lambda order: self._send(up.lane, order), self._count_late)
        lane = FarLane(
            self._known, self._settings, node.offer, node.offer.devices[up.device], line, self._waits,
            self._other_has,
        )  # fmt: skip
        lane.leaving = node.draining
        node.lanes[up.lane] = self._lanes[up.lane] = lane
        self._heard[up.lane] = time.monotonic()
        self._pool.add(lane)

    def _hear(self, report: FromLane) -> None:
        lane = self._lanes.get(report.lane)
        words = messages.words_of(report.batch)
        if lane is None:
            self.late += sum(not isinstance(word, Beat | Stock) for word in words)
            return
        self._heard[report.lane] = time.monotonic()
        for word in words:
            match word:
                case Beat():
                    pass
                case Stock():
                    self._take_stock(report.lane, lane, word)
                case _:
                    lane.line.take(word)

    def _take_stock(self, id: str, lane: FarLane, stock: Stock) -> None:
        lane.take_stock(stock)
        if stock.leaving:
            self._drain(next(node for node in self.nodes.values() if id in node.lanes))
        self._pool.memory_changed()

    def _send(self, lane: str, order: Order) -> None:
        self.send(ToLane(lane, messages.encode(order)))

    def _count_late(self) -> None:
        self.late += 1

    def _other_has(self, lane: FarLane, entry: Entry) -> bool:
        return any(other is not lane and other.has(entry) for other in self._pool.lanes)

    # -- what ends ------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Give up lanes that are silent; drained nodes are let go."""
        while True:
            began = time.monotonic()
            await asyncio.sleep(LOOK)
            if time.monotonic() - began > LOOK + STALLED:
                continue  # it is this process that was not heard: what the lanes said comes first
            for lane in list(self._silent()):
                self._lose(lane, f"it was silent for {self._waits.silent_lane:g} s")
                self.send(Drop(lane))
            for node in self.nodes.values():
                if node.draining and node.lanes and not any(lane.held for lane in node.lanes.values()):
                    self._let_go(node)

    def _silent(self) -> Iterator[str]:
        now = time.monotonic()
        return (lane for lane, heard in self._heard.items() if now - heard > self._waits.silent_lane)

    def _drain(self, node: Node) -> None:
        if not node.draining:
            log.info("node %s gets no more work", node.name)
        node.draining = True
        for lane in node.lanes.values():
            lane.leaving = True
        self._pool.changed()

    def _let_go(self, node: Node) -> None:
        self.send(Release(node.id))
        for id in list(node.lanes):
            self._remove(id, "drained")
        log.info("node %s is drained", node.name)

    def _lose(self, id: str, why: str) -> None:
        lane = self._lanes.get(id)
        if lane is None:
            return
        self.lost.append(Lost(lane.name, why, time.time()))
        self.losses[why] += 1
        log.warning("lane %s was lost: %s", lane.name, why)
        self._remove(id, why)

    def _remove(self, id: str, why: str) -> None:
        lane = self._lanes.pop(id)
        del self._heard[id]
        for node in self.nodes.values():
            node.lanes.pop(id, None)
        self._pool.remove(lane)
        lane.line.lose(why)

    def _lose_all(self, why: str) -> None:
        for id in list(self._lanes):
            self._lose(id, why)
        self.nodes.clear()

    def _fail(self, why: str) -> None:
        if why != self.why:
            log.error("cluster: %s; trying again every %g s", why, self._waits.cluster_again)
        self.status, self.why = "failed", why
        self._lose_all("the connection to the cluster ended")
