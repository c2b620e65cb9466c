"""What was measured of each model, in a file of the state folder: estimates are right after a restart."""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from gguf_imagegen.jobs.estimates import Measured
from gguf_imagegen.machine import files

log = logging.getLogger(__name__)


class PaceFile:
    """Without a path it keeps nothing. Call it in a thread."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._written = b""

    def read(self) -> Measured:
        """Nothing, if the file is not there, or if another version of the program wrote it."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Measured) if self._path else Measured()
        except FileNotFoundError:
            return Measured()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            log.warning("what was measured before cannot be read: %s", type(exc).__name__)
            return Measured()

    def write(self, known: Measured) -> None:
        """If there is anything new; a full disk costs no more than that."""
        content = msgspec.json.encode(known)
        if self._path is None or content == self._written:
            return
        try:
            files.put(self._path, content, 0o600, lasting=False)
        except OSError as exc:
            log.warning("what was measured cannot be stored: %s", exc.strerror)
        else:
            self._written = content
