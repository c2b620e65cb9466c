"""Limits that the operating system sets for this process: open files, and memory of its own."""

from __future__ import annotations

import math
import sys
from contextlib import suppress

WINDOWS_FILES = 8192
"""Handles of the C runtime; sockets are no part of them."""

if sys.platform == "win32":

    def open_files(wanted: int) -> float:
        """As many files as may be open, at least `wanted` where that can be had."""
        return WINDOWS_FILES

    def bound_memory(size: int) -> None:
        """Not possible here without a job object."""
else:
    import resource

    def open_files(wanted: int) -> float:
        """As many files as may be open: a soft limit below `wanted` is raised first, as far as it can be."""
        kind = resource.RLIMIT_NOFILE
        soft, hard = (math.inf if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(kind))
        enough = min(wanted, hard)
        if soft < enough:
            with suppress(ValueError, OSError):
                resource.setrlimit(kind, (int(enough), resource.getrlimit(kind)[1]))
                soft = enough
        return soft

    def bound_memory(size: int) -> None:
        """On Linux: more than so many bytes of data cannot be had. Elsewhere the limit means other memory."""
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_DATA, (size, size))
