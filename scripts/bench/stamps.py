"""An engine that remembers when things happened in it, on the clock that all processes share.

As a program it is that engine's worker.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator

from gguf_imagegen.engines import pipes
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp import worker
from gguf_imagegen.vocabulary import events
from gguf_imagegen.vocabulary.engine import Task
from gguf_imagegen.vocabulary.events import EngineEvent

now = time.perf_counter


class StampedEngine(EngineProcess):
    """Remembers how long the last image took, and when each step was called back and when it came here."""

    def __init__(self) -> None:
        super().__init__(command=(sys.executable, "-m", "scripts.bench.stamps"))
        self.times: dict[int, tuple[float, float]] = {}
        self.took = 0.0

    async def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        began = now()
        async for event in super().run(task):
            match event:
                case events.Made():
                    self.took = now() - began
                case events.Progress(phase="sampling", step=step, seconds_per_step=called) if step:
                    self.times[step] = called, now()
            yield event


class StampingWorker(worker.Worker):
    """Sends the time of each callback in the place of the seconds per step."""

    def on_progress(self, step: int, steps: int, seconds: float) -> None:
        super().on_progress(step, steps, now())


def main() -> None:
    """`worker.main` with the class above."""
    commands, send = pipes.take_over()
    computing = StampingWorker(send)
    while True:
        computing.run(commands.get())


if __name__ == "__main__":
    main()
