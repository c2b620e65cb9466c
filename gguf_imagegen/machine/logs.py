"""The server's log: one line a record, whatever a client has put into it, and no path of this machine."""

from __future__ import annotations

import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

log = logging.getLogger(__name__)
OURS = "gguf_imagegen"
"""The logger above all of ours."""
KEPT = 500
"""Lines that the server keeps for its admins."""
DISCREET = "discreet"
"""Attribute of a record, given as `extra`, with what admins read in place of its message."""
CHATTY = ("mcp", "httpx2")
"""Libraries that tell of each request, and of sessions that only their clients should know."""


class OneLine(logging.Formatter):
    """What would break a line, or hide in it, is written as an escape; a traceback keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of `logging`
        return one_line(super().formatMessage(record))


def one_line(text: str) -> str:
    """`text` with an escape in place of every character that does not print."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Line:
    """One line that is kept. `number` counts from 1 since the start, `at` is in seconds since 1970."""

    number: int
    at: float
    level: str
    text: str


class Tail(logging.Handler):
    """The latest lines of our own loggers, for admins who do not see stderr.

    They have no prompts, and of exceptions the type alone: a traceback names paths of this machine.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[Line] = deque(maxlen=KEPT)
        self._count = 0
        self._told: Callable[[], None] | None = None

    def attach(self, told: Callable[[], None]) -> None:
        """Keep what is logged from now on; `told` is called after each line, from any thread."""
        self._told = told
        logging.getLogger(OURS).addHandler(self)

    def detach(self) -> None:
        logging.getLogger(OURS).removeHandler(self)
        self._told = None

    def emit(self, record: logging.LogRecord) -> None:
        self._count += 1
        text = getattr(record, DISCREET, None) or record.getMessage()
        if record.exc_info and record.exc_info[0]:
            text += f" ({record.exc_info[0].__name__}; stderr has the traceback)"
        self._lines.append(Line(self._count, record.created, record.levelname.lower(), one_line(text)))
        if self._told:
            self._told()

    def since(self, number: int) -> list[Line]:
        """The lines after this one, as far as they are kept."""
        self.acquire()
        try:
            return [line for line in self._lines if line.number > number]
        finally:
            self.release()


def set_up(level: str) -> None:
    """Log to stderr from `level` on. Python's own warnings, too; but Pillow's are about what clients send."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for library in CHATTY:
        logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    warnings.filterwarnings("ignore", module="PIL")
    warnings.showwarning = _log_warning


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As `logging.captureWarnings`, which would tell where the library is installed."""
    log.warning("%s: %s", category.__name__, message)
