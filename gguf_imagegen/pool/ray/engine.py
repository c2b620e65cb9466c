"""An engine on a node of the cluster, as the server sees it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeAlias

from gguf_imagegen.engines import wire
from gguf_imagegen.pictures.finish import Finish
from gguf_imagegen.pool.ray import messages
from gguf_imagegen.pool.ray.messages import Close, Closed, Do, Enlarge, Load, Order, Over, Told
from gguf_imagegen.vocabulary.engine import Generate, Task
from gguf_imagegen.vocabulary.errors import WorkerCrashed, WorkerKilled
from gguf_imagegen.vocabulary.events import Done, EngineEvent, Made

log = logging.getLogger(__name__)

Command: TypeAlias = Load | Do | Enlarge
ENDING: Final = 5.0
"""Seconds that a lane gets to end an engine; then it counts as ended."""


class Line:
    """What goes to one lane, and what comes from it: each to the run that it is of.

    A run is one attempt: what comes of an older one finds nobody, and is refused.
    """

    def __init__(self, lane: str, send: Callable[[Order], None], late: Callable[[], None]) -> None:
        self.lane = lane
        self.lost = ""
        """Why nothing comes any more."""
        self._send = send
        self._late = late
        self._numbers = itertools.count(1)
        self._runs: dict[int, asyncio.Queue[Told | Over]] = {}
        self._run_of: dict[int, int] = {}  # by engine
        self._endings: dict[int, asyncio.Event] = {}

    def new_engine(self) -> FarEngine:
        return FarEngine(self, next(self._numbers))

    def take(self, word: Told | Over | Closed) -> None:
        match word:
            case Told() | Over():
                if word.run in self._runs:
                    self._runs[word.run].put_nowait(word)
                else:
                    self._late()
            case Closed():
                if ending := self._endings.pop(word.engine, None):
                    ending.set()

    def lose(self, why: str) -> None:
        """The lane is gone, with all that it was doing."""
        self.lost = why
        for run, words in self._runs.items():
            words.put_nowait(Over(run, WorkerKilled.__name__, f"Lane {self.lane} was lost ({why})."))
        for ending in self._endings.values():
            ending.set()

    async def run(self, engine: int, make: Callable[[int], Command]) -> AsyncIterator[EngineEvent]:
        """The events of one command of an engine, which gets the number of the run."""
        if self.lost:
            raise WorkerKilled(f"Lane {self.lane} was lost ({self.lost}).")
        run = next(self._numbers)
        words = self._runs[run] = asyncio.Queue()
        self._run_of[engine] = run
        try:
            self._send(make(run))
            while True:
                match await words.get():  # bounded: a lane that is silent for long is lost
                    case Told(event=event):
                        yield wire.decode(event)
                    case Over() as over:
                        if error := messages.error_of(over):
                            raise error
                        return
        finally:
            self._runs.pop(run, None)

    async def close(self, engine: int) -> None:
        """Returns when the engine is gone, as far as anybody can tell."""
        if self.lost:
            return
        if words := self._runs.pop(self._run_of.pop(engine, 0), None):
            words.put_nowait(Over(0, WorkerCrashed.__name__, "The engine was closed."))
        ended = self._endings.setdefault(engine, asyncio.Event())
        self._send(Close(engine))
        try:
            await asyncio.wait_for(ended.wait(), ENDING)
        except asyncio.TimeoutError:
            log.warning("lane %s did not end an engine within %g s", self.lane, ENDING)
            self._endings.pop(engine, None)


class FarEngine:
    """Implements `vocabulary.engine.LiveEngine`; what it loads is opened on its node."""

    def __init__(self, line: Line, number: int) -> None:
        self._line = line
        self._number = number
        self._started = False
        self._died = False
        self._closed = asyncio.Event()

    @property
    def alive(self) -> bool:
        return self._started and not (self._closed.is_set() or self._died or self._line.lost)

    @property
    def number(self) -> int:
        return self._number

    def load(self, make: Callable[[int], Load]) -> AsyncIterator[EngineEvent]:
        """Load a model: `Loading` events, then one `Loaded`."""
        return self._run(make)

    def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        """See `vocabulary.engine.LiveEngine`."""
        return self._run(lambda run: Do(self._number, run, messages.packed(task), None))

    def draw(self, spec: Generate, finish: Finish) -> AsyncIterator[EngineEvent]:
        """The same; pictures and previews come as files."""
        return self._run(lambda run: Do(self._number, run, messages.packed(spec), finish))

    def enlarge(self, made: Made, finish: Finish) -> AsyncIterator[EngineEvent]:
        """The same of a picture that is there already."""
        return self._run(lambda run: Enlarge(self._number, run, messages.packed(made), finish))

    async def close(self) -> None:
        """See `vocabulary.engine.LiveEngine`."""
        if not self._closed.is_set():
            self._closed.set()
            await self._line.close(self._number)

    async def _run(self, make: Callable[[int], Command]) -> AsyncIterator[EngineEvent]:
        if self._closed.is_set():
            raise WorkerCrashed("The engine was closed.")
        self._started = True
        try:
            async for event in self._line.run(self._number, make):
                if self._closed.is_set():
                    break
                if not isinstance(event, Done):
                    yield event
        except WorkerCrashed:
            self._died = True
            if not self._closed.is_set():
                raise
        if self._closed.is_set():
            raise WorkerCrashed("The engine was closed.")
