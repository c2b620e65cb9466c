"""Loads that failed, and engines that crashed: shown to whoever asks, and not tried again at once."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.vocabulary.errors import ImagegenError, InsufficientMemory, ModelLoadFailed
from gguf_imagegen.vocabulary.waits import USUAL

CRASHES = 3
"""So many crashes within CRASH_WINDOW seconds, and nothing is started for a while."""
CRASH_WINDOW = 60.0
IN_TILES = "memory is short just now: decoded in tiles, which may change pixels a little"


class NoRoomYet(Exception):
    """The model does not fit here while other lanes work; `refusal` is what to say if that never changes.

    With `in_tiles` the model does, and the picture if it is decoded in tiles.
    """

    def __init__(self, refusal: InsufficientMemory, *, in_tiles: bool = False) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
        self.in_tiles = in_tiles


class Failures:
    """Of all lanes together: a file that one lane cannot load, no other can.

    A model that failed to load is not tried again for `wait` seconds.
    """

    def __init__(self, wait: float = USUAL.failed_load) -> None:
        self._wait = wait
        self.last: ImagegenError | None = None
        """Why the last load failed; None once another one went well."""
        self.by_model: dict[str, ImagegenError] = {}
        """By name of a model: why its last load failed."""
        self._failed: dict[tuple[str, Path | None], tuple[float, ImagegenError]] = {}

    def add(self, entry: Entry, error: ImagegenError) -> None:
        self.last = self.by_model[entry.name] = error.bare()
        if isinstance(error, ModelLoadFailed):
            self._failed[_key(entry)] = (time.monotonic(), self.last)

    def loaded(self, entry: Entry) -> None:
        """This model could be loaded after all."""
        self.last = None
        self.by_model.pop(entry.name, None)

    def refuse_hopeless(self, entry: Entry) -> None:
        """Raise why this model failed to load, if that was a moment ago."""
        failed = self._failed.pop(_key(entry), None)
        if failed is not None and time.monotonic() - failed[0] < self._wait:
            self._failed[_key(entry)] = failed
            raise failed[1].bare()

    def forget(self, entry: Entry) -> None:
        """Somebody asked for this model by hand: try again at once."""
        self._failed = {key: failed for key, failed in self._failed.items() if key[0] != entry.name}
        self.by_model.pop(entry.name, None)


class Crashes:
    """Of a lane's engines under jobs; some in a row are followed by a pause of `wait` seconds."""

    def __init__(self, wait: float = USUAL.crash_pause) -> None:
        self._wait = wait
        self._times: deque[float] = deque(maxlen=CRASHES)

    def add(self) -> None:
        """The engine died under a job."""
        self._times.append(time.monotonic())

    def job_succeeded(self) -> None:
        """In a pause its engine was alive all the time, which says nothing of others."""
        if not self.pause:
            self._times.clear()

    @property
    def pause(self) -> float:
        """Seconds for which no engine should be started."""
        if len(self._times) < CRASHES or self._times[-1] - self._times[0] > CRASH_WINDOW:
            return 0.0
        return max(0.0, self._times[-1] + self._wait - time.monotonic())


def _key(entry: Entry) -> tuple[str, Path | None]:
    """A ControlNet that cannot be loaded says nothing of the model."""
    return entry.name, entry.files.get("control_net")
