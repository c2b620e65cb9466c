"""Reading text in pictures as the server sees it: one picture at a time, in a process of its own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Final

from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.machine.processes import PYTHON
from gguf_imagegen.vocabulary.callers import EVERYBODY, Caller
from gguf_imagegen.vocabulary.engine import Engine, Read
from gguf_imagegen.vocabulary.errors import NotInstalled, QueueFull, ReadingFailed
from gguf_imagegen.vocabulary.events import TextFound, TextLine

WORKER: Final = (PYTHON, "-m", "gguf_imagegen.engines.ocr.worker")
LIBRARIES: Final = ("rapidocr", "onnxruntime")
MOST_THREADS: Final = 8
"""More make these small models no faster."""
STALL: Final = 60.0
"""Seconds without any use of the CPU after which the process is ended."""
LONGEST: Final = 300.0
"""Seconds that one picture may take."""


def rapidocr(threads: int) -> EngineProcess:
    """A process that is not started yet. Raises NotInstalled without the extra."""
    if any(find_spec(name) is None for name in LIBRARIES):
        raise NotInstalled(
            "reading text needs a library that is not installed: run pip install 'gguf-imagegen[ocr]'"
            " and start the server again"
        )
    return EngineProcess(stall_timeout=STALL, command=(*WORKER, str(min(threads, MOST_THREADS))))


class Reader:
    """Reads pictures in the order in which they come.

    `make` gives an engine that is not started yet. At most `most` pictures wait or are read; the process ends
    `keep` seconds after the last one (negative: never), and at once if a picture takes longer than `longest`
    or whoever wants its text leaves.
    """

    def __init__(
        self, make: Callable[[], Engine], *, most: int, keep: float, longest: float = LONGEST
    ) -> None:
        self._make = make
        self._most = most
        self._keep = keep
        self._longest = longest
        self._engine: Engine | None = None
        self._turn = asyncio.Lock()
        self._waiting: Counter[str] = Counter()
        self._idle: asyncio.Task[None] | None = None

    def check(self, caller: Caller) -> None:
        """Raise what `read` would raise at once, before work is put into a request."""
        if self._engine is None:
            self._engine = self._make()
        every, own = self._waiting.total(), self._waiting[caller.name]
        if every >= self._most:
            raise QueueFull(f"{every} pictures are waiting; try again later", retry_after=5)
        if caller.bounds.jobs is not None and own >= caller.bounds.jobs:
            raise QueueFull(
                f"{own} pictures of {caller.name} wait to be read, and it may have {caller.bounds.jobs}"
                " at once; try again later",
                retry_after=5,
            )

    async def read(self, task: Read, caller: Caller = EVERYBODY) -> tuple[TextLine, ...]:
        """The lines of text in a picture; raises ImagegenError kinds."""
        self.check(caller)
        self._waiting[caller.name] += 1
        try:
            async with self._turn:
                return await self._read(task)
        finally:
            self._waiting[caller.name] -= 1

    async def close(self) -> None:
        """End the process, whatever it does. Idempotent."""
        if self._idle is not None:
            self._idle.cancel()
        if self._engine is not None:
            await self._engine.close()

    async def _read(self, task: Read) -> tuple[TextLine, ...]:
        if self._idle is not None:
            self._idle.cancel()
        engine = self._engine = self._engine or self._make()
        reading = asyncio.create_task(_lines(engine, task))
        try:
            if not (await asyncio.wait([reading], timeout=self._longest))[0]:
                raise ReadingFailed(
                    f"the text was not read within {self._longest:g} s; send a smaller picture"
                )
            return reading.result()
        finally:
            if not reading.done():  # a closed engine ends it for sure; one cancellation may be lost
                await self._end()
                await asyncio.wait([reading])
                reading.exception()
            if not engine.alive:  # the next picture starts another
                self._engine = None
            if self._keep >= 0:
                self._idle = asyncio.create_task(self._end_when_idle())

    async def _end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()

    async def _end_when_idle(self) -> None:
        await asyncio.sleep(self._keep)
        async with self._turn:
            await self._end()


async def _lines(engine: Engine, task: Read) -> tuple[TextLine, ...]:
    found: tuple[TextLine, ...] = ()
    async for event in engine.run(task):
        if isinstance(event, TextFound):
            found = event.lines
    return found
