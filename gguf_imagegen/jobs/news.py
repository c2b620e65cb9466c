"""Which jobs had events, for followers of all of them that look now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from gguf_imagegen.jobs.job import Job
from gguf_imagegen.vocabulary.bell import Bell

REMEMBERED = 1000
"""Latest events by which a follower finds what has changed; one that is further behind looks at all jobs."""


class News:
    """`count` is the number of events of all jobs together."""

    def __init__(self) -> None:
        self.count = 0
        self._latest: deque[Job] = deque(maxlen=REMEMBERED)
        self._bell = Bell()

    def add(self, job: Job) -> None:
        """It had an event."""
        self._latest.append(job)
        self.count += 1
        self.wake()

    def wake(self) -> None:
        """Followers shall look, whether there was an event or not."""
        self._bell.ring()

    def since(self, count: int, jobs: Iterable[Job]) -> list[Job]:
        """Those of `jobs` that had events since there were `count` of them; perhaps more than these."""
        new = self.count - count
        if new > len(self._latest):
            return list(jobs)
        return list(dict.fromkeys(islice(self._latest, len(self._latest) - new, None)))

    async def wait(self, timeout: float) -> None:
        """Wait until something happens, at most `timeout` seconds."""
        await self._bell.heard(timeout)
