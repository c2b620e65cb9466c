"""Files that hold keys: a word in the log when others on this machine may read them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)
OTHERS = 0o077
"""Permission bits of everybody but the owner of a file."""


def warn_of_readers(path: Path) -> None:
    if os.name == "posix" and path.stat().st_mode & OTHERS:
        log.warning("other users can read the keys in %s: chmod 600 it", path.name)
