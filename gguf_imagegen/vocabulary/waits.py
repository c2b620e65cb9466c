"""How long a server waits where no setting says so; tests wait less."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Waits:
    """Seconds, each."""

    unread: float = 120.0
    """For which a client may read nothing of what is written to it; then it counts as gone."""
    together: float = 0.05
    """Events within them reach whoever watches all jobs in one piece."""
    places_again: float = 2.0
    """Until those who wait are told again how long, though the queue is as it was."""
    crash_pause: float = 15.0
    """After crashes in a row, until an engine is started again."""
    failed_load: float = 15.0
    """For which a model that failed to load is not tried again."""
    webhook_again: tuple[float, ...] = (5.0, 30.0, 120.0, 600.0, 1800.0, 7200.0)
    """After each attempt to call a webhook that failed; the attempt after the last one is the last."""
    cancel_again: float = 5.0
    """After which a cancellation was lost: `asyncio.wait_for` may swallow one before Python 3.12."""
    silent_lane: float = 8.0
    """After which a lane of the cluster that says nothing counts as lost; it says something every 2 s.

    What is done about it must begin within 10 s.
    """
    absent_told: float = 5.0
    """Until a waiting job is told that no machine of the cluster has its files; more may join just now."""
    absent: float = 600.0
    """Until it fails; a machine that has them may be starting again."""
    cluster_again: float = 5.0
    """After the connection to the cluster ended, until it is tried again."""


USUAL = Waits()
