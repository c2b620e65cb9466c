"""Room for decoding pictures: a budget over all requests, and memory given back when a large one is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

from gguf_imagegen import heap
from gguf_imagegen.api.budget import Budget

T = TypeVar("T")

SMALL = 24 << 20
"""Bytes of pictures that do not wait behind large ones: six million pixels."""
PATIENCE = 120.0


def _budget(total: int) -> Budget:
    return Budget(total, PATIENCE, "pictures")


@dataclass(frozen=True)
class Pixels:
    """Large pictures are decoded one after the other, small ones beside them."""

    small: Budget = field(default_factory=lambda: _budget(3 * SMALL))
    large: Budget = field(default_factory=lambda: _budget(SMALL))


PIXELS = web.AppKey("pixels", Pixels)


async def in_turn(app: web.Application, memory: int, work: Callable[[], T]) -> T:
    """The result of this work on pictures, which takes so many bytes, made in a thread when there is room.

    Raises ServerBusy if there is none for too long. The room is held until the thread has ended, even if
    nobody waits for it any more.
    """
    if not memory:
        return await asyncio.to_thread(work)
    is_large = memory > SMALL
    with (app[PIXELS].large if is_large else app[PIXELS].small).share() as share:
        await share.grow(memory)
        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        finally:
            await asyncio.wait({running})
            if is_large:
                await asyncio.to_thread(heap.give_back)
