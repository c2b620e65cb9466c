"""The state folder: what outlives a server, in the hands of one server at a time, readable by its owner.

In it are the journal of the jobs, the pictures of their requests, the pictures made, and how long they took.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gguf_imagegen.jobs.journal import Journal, NewerJournal
from gguf_imagegen.jobs.ledger import Ledger
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.machine import locks
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)


class Unusable(Exception):
    """Another server has the state folder, or a newer version of the program had it."""


@dataclass(frozen=True)
class State:
    """The folder of this server's pictures, its ledger, and the file of what it has measured."""

    pictures: Path
    ledger: Ledger
    pace: Path | None = None


@contextmanager
def folder(settings: Settings) -> Iterator[State | None]:
    """Have the state folder; raises `Unusable`.

    None if nothing is to be kept, or if the folder cannot be written: the log says why, and the server works
    all the same.
    """
    with ExitStack() as stack:
        yield None if settings.ephemeral else _locked(settings.state_dir, stack)


def _locked(path: Path, stack: ExitStack) -> State | None:
    journal = Journal(path / "journal.sqlite")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(locks.exclusive(path / "server.lock"))
        journal.open()
    except locks.Held as exc:
        holder = f" (process {exc.holder})" if exc.holder else ""
        raise Unusable(
            f"another server{holder} uses the state folder {path}; give this one another --state-dir,"
            " or say --ephemeral to keep nothing"
        ) from None
    except NewerJournal as exc:
        raise Unusable(str(exc)) from None
    except OSError as exc:
        log.warning(
            "cannot write to the state folder (%s), jobs and pictures are lost when the server ends;"
            " see --state-dir",
            exc.strerror,
        )
        return None
    return State(path / "pictures", Ledger(journal, Spool(path / "spool")), path / "pace.json")
