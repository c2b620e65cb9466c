"""A lane's end on its node: an actor of Ray that owns engines, tells what they do, and ends with its raylet.

Nothing here imports Ray: `pool.ray.bridge` makes an actor of the class.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, Final

from gguf_imagegen.pool import finishing
from gguf_imagegen.pool.ray import files, messages
from gguf_imagegen.pool.ray.messages import Beat, Close, Closed, Do, Enlarge, Load, Stock, Told, Word
from gguf_imagegen.pool.ray.node_settings import FOLDER, is_abandoned, is_leaving, node_name
from gguf_imagegen.pool.ray.offer import backend_here
from gguf_imagegen.pool.ray.opening import Opening
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine, Generate
from gguf_imagegen.vocabulary.errors import ImagegenError, InternalError
from gguf_imagegen.vocabulary.events import EngineEvent, Notice

log = logging.getLogger(__name__)

TOGETHER: Final = 0.05
"""Seconds within which events leave in one batch; the first after a silence leaves at once."""
BEAT: Final = 2.0
LOOK: Final = 10.0
"""Seconds between two looks at the node's folders."""
WATCH: Final = 1.0


class EngineActor:
    """The device with this number of the node. Each engine has one command at a time.

    `events` is read once and for ever; a second reader would take from the first. With `alone` the process
    is this actor's own, and ends with its parent.
    """

    def __init__(self, device: int, *, alone: bool = False) -> None:
        if alone:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
            _leave_number()
        self._settings = Settings()
        self._backend = backend_here(self._settings)
        self._device = self._backend.devices()[device]
        self._node = node_name()
        self._opening = Opening(self._settings, self._device, self._node)
        self._words: asyncio.Queue[Word] = asyncio.Queue()
        self._engines: dict[int, Engine] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._running: dict[int, asyncio.Task[None]] = {}  # by engine
        self._stock: Stock | None = None

    async def tell(self, data: bytes) -> None:
        """Take an order; what comes of it is among the events."""
        order = messages.order_of(data)
        match order:
            case Load() | Do() | Enlarge():
                self._running[order.engine] = self._begin(self._run(order))
            case Close():
                self._begin(self._close(order.engine))

    async def events(self) -> AsyncIterator[bytes]:
        """Batches, at least one in `BEAT` seconds."""
        self._begin(self._look())
        sent = 0.0
        while True:
            batch: list[Word] = [await self._next_word()]
            rest = sent + TOGETHER - time.monotonic()
            if rest > 0 and not isinstance(batch[0], Beat):
                await asyncio.sleep(rest)
            while not self._words.empty():
                batch.append(self._words.get_nowait())
            sent = time.monotonic()
            yield messages.encode(batch)

    async def _next_word(self) -> Word:
        try:
            return await asyncio.wait_for(self._words.get(), BEAT)
        except asyncio.TimeoutError:
            return Beat()

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _run(self, order: Load | Do | Enlarge) -> None:
        error: ImagegenError | None = None
        try:
            async for event in self._events_of(order):
                self._words.put_nowait(Told(order.run, messages.packed(event)))
        except ImagegenError as exc:
            error = exc
        except Exception:  # the lane must outlive any defect of ours; the log has the trace
            log.exception("internal error in a lane of %s", self._node)
            error = InternalError(f"internal error on {self._node}; its log has the details")
        self._words.put_nowait(messages.over(order.run, error))

    async def _events_of(self, order: Load | Do | Enlarge) -> AsyncIterator[EngineEvent]:
        engine = self._engines.get(order.engine)
        if engine is None:
            engine = self._engines[order.engine] = self._backend.engine(self._device)
        if isinstance(order, Load):
            async with self._opening.spec(order) as spec:
                if self._engines.get(order.engine) is not engine:
                    return  # closed meanwhile
                async for event in engine.load(spec):
                    yield event
            return
        notes: list[str] = []
        made = await asyncio.to_thread(self._made, engine, order, notes)
        for note in notes:
            yield Notice(note)
        async for event in made:
            yield event

    def _made(self, engine: Engine, order: Do | Enlarge, notes: list[str]) -> AsyncIterator[EngineEvent]:
        """What comes of it, with add-ons where they lie here: call it in a thread."""
        here, threads = self._opening.resolver, self._device.threads
        if isinstance(order, Enlarge):
            made = messages.made_of(order.made)
            return finishing.enlarged(engine, made, here.finish(order.finish), threads)
        task = messages.task_of(order.task)
        if isinstance(task, Generate):
            task = self._opening.task(order.engine, task, notes)
            if order.finish:
                return finishing.drawn(engine, task, here.finish(order.finish), threads)
        return engine.run(task)

    async def _close(self, number: int) -> None:
        engine, running = self._engines.pop(number, None), self._running.pop(number, None)
        self._opening.forget(number)
        if engine is not None:
            await engine.close()
        if running is not None:
            running.cancel()
        self._words.put_nowait(Closed(number))

    async def _look(self) -> None:
        """Tell what lies in the node's folders, whenever that has changed."""
        looked = -LOOK
        while True:
            leaving = is_leaving()
            known = self._stock
            if known is None or leaving != known.leaving or time.monotonic() - looked > LOOK:
                found = await asyncio.to_thread(files.stock, self._settings, leaving=leaving)
                looked = time.monotonic()
                if found != known:
                    self._stock = found
                    self._words.put_nowait(found)
            await asyncio.sleep(WATCH)


def _end_with_parent(parent: int) -> None:
    """An actor outlives a raylet that was killed, with all memory of its engines, unless it looks.

    And it ends with the command that started its node.
    """
    while os.getppid() == parent and not is_abandoned():
        time.sleep(WATCH)
    os._exit(1)


def _leave_number() -> None:
    """For the node, which waits for its lanes to end."""
    folder = os.environ.get(FOLDER)
    if folder is not None:
        with contextlib.suppress(OSError):
            (Path(folder) / str(os.getpid())).touch()
