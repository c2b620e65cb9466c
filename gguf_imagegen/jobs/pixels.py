"""Room for decoding pictures: a budget over all requests, and memory given back when a large one is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from gguf_imagegen.jobs.budget import Budget
from gguf_imagegen.machine import heap
from gguf_imagegen.vocabulary.errors import ServerBusy

T = TypeVar("T")

SMALL = 24 << 20
"""Bytes of pictures that do not wait behind large ones: six million pixels."""
PATIENCE = 120.0
MAX_WAITING = 256 << 20
"""Bytes of pixels that jobs may hold until they have run, before no more such jobs are taken."""


class Pixels:
    """Large pictures are decoded one after the other, small ones beside them; `held` is what jobs hold."""

    def __init__(self, held: Callable[[], int]) -> None:
        self.small = Budget(3 * SMALL, PATIENCE, "pictures")
        self.large = Budget(SMALL, PATIENCE, "pictures")
        self._held = held

    async def in_turn(self, memory: int, work: Callable[[], T]) -> T:
        """The result of work on pictures that takes so many bytes, made in a thread when there is room.

        Raises ServerBusy if there is none for too long, or if jobs that wait hold too much already. The room
        is held until the thread has ended, even if nobody waits for it any more.
        """
        if not memory:
            return await asyncio.to_thread(work)
        is_large = memory > SMALL
        with (self.large if is_large else self.small).share() as share:
            await share.grow(memory)
            if self._held() > MAX_WAITING:
                raise ServerBusy("waiting jobs hold too many large pictures; try again later", retry_after=30)
            running = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                return await asyncio.shield(running)
            finally:
                await asyncio.wait({running})
                if is_large:
                    await asyncio.to_thread(heap.give_back)
