"""The server's log: one line a record, whatever a client has put into it, and no path of this machine."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TextIO

log = logging.getLogger(__name__)
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
