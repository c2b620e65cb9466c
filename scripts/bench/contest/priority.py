"""The niceness of a measurement, where Linux shares the processor among sessions first."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def take_priority(pid: int | None = None) -> None:
    """Give a process's session the niceness of this one.

    With autogroups (sched(7), `/proc/sys/kernel/sched_autogroup_enabled`) niceness counts within a session
    only: `nice -n -10` alone gets no more of a busy machine, and a worker is a session of its own. Without
    the right to it, or without autogroups, nothing changes.
    """
    with suppress(OSError):
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        Path(f"/proc/{pid or 'self'}/autogroup").write_text(str(niceness), encoding="ascii")
