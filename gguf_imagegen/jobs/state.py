"""The state folder: what outlives a server, in the hands of one server at a time, readable by its owner."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gguf_imagegen.machine import locks
from gguf_imagegen.settings import Settings

log = logging.getLogger(__name__)


class InUse(Exception):
    """Another server has the state folder."""


@contextmanager
def folder(settings: Settings) -> Iterator[Path | None]:
    """Have the state folder; raises `InUse`.

    None if nothing is to be kept, or if the folder cannot be written: the log says why, and the server works
    all the same.
    """
    with ExitStack() as stack:
        yield None if settings.ephemeral else _locked(settings.state_dir, stack)


def _locked(path: Path, stack: ExitStack) -> Path | None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(locks.exclusive(path / "server.lock"))
    except locks.Held as exc:
        holder = f" (process {exc.holder})" if exc.holder else ""
        raise InUse(
            f"another server{holder} uses the state folder {path}; give this one another --state-dir,"
            " or say --ephemeral to keep nothing"
        ) from None
    except OSError as exc:
        log.warning(
            "cannot write to the state folder (%s), pictures are lost when the server ends; see --state-dir",
            exc.strerror,
        )
        return None
    return path
