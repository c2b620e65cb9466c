"""Loads that failed: shown to whoever asks, and not tried again at once, on no lane."""

from __future__ import annotations

import time
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.vocabulary.errors import ImagegenError, InsufficientMemory, ModelLoadFailed
from gguf_imagegen.vocabulary.waits import USUAL

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


def _key(entry: Entry) -> tuple[str, Path | None]:
    """A ControlNet that cannot be loaded says nothing of the model."""
    return entry.name, entry.files.get("control_net")
