"""What a pull tells while it goes on: a closed set of events, and the meter of a transfer."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

TELL = 0.1
"""Seconds between two reports of a file's progress."""
WINDOW = 5.0
"""Seconds over which the speed is taken."""


@dataclass(frozen=True)
class Planned:
    """What will be fetched: names inside the models folder with their sizes, and the bytes here already."""

    files: tuple[tuple[str, int], ...]
    done: int
    total: int


@dataclass(frozen=True)
class Downloading:
    """`speed` in bytes a second; `eta` in seconds, None while nothing comes."""

    file: str
    done: int
    total: int
    speed: float
    eta: float | None


@dataclass(frozen=True)
class Verifying:
    """The hash is being computed; done and total are bytes."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class Rewriting:
    """The file is being rewritten so that the engine finds its parts, or joined from them."""

    file: str
    done: int
    total: int


@dataclass(frozen=True)
class FileReady:
    """The file is in its place; not `fetched` if it had been there."""

    file: str
    fetched: bool


PullEvent: TypeAlias = Planned | Downloading | Verifying | Rewriting | FileReady


class Meter:
    """Tells how far a file's transfer is, at most every TELL seconds and at its end."""

    def __init__(self, file: str, total: int, tell: Callable[[PullEvent], None]) -> None:
        self._file = file
        self._total = total
        self._tell = tell
        self._past: deque[tuple[float, int]] = deque()
        self._told = 0.0

    def start(self, done: int) -> None:
        """A transfer begins here; what was done before says nothing about its speed."""
        self._past.clear()
        self._past.append((time.monotonic(), done))

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told < TELL and done < self._total:
            return
        self._told = now
        self._past.append((now, done))
        while len(self._past) > 2 and now - self._past[0][0] > WINDOW:
            self._past.popleft()
        since, before = self._past[0]
        speed = (done - before) / max(now - since, 1e-3)
        eta = (self._total - done) / speed if speed > 0 else None
        self._tell(Downloading(self._file, done, self._total, speed, eta))


def at_intervals(
    make: Callable[[str, int, int], PullEvent], file: str, tell: Callable[[PullEvent], None]
) -> Callable[[int, int], None]:
    """Tells of work on a whole file, at most every TELL seconds and at its end."""
    told = 0.0

    def report(done: int, total: int) -> None:
        nonlocal told
        if done >= total or time.monotonic() - told >= TELL:
            told = time.monotonic()
            tell(make(file, done, total))

    return report
