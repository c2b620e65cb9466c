"""Room for decoding pictures: a budget over all requests, and memory given back when a large one is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from aiohttp import web

from gguf_imagegen import heap
from gguf_imagegen.api.budget import Budget
from gguf_imagegen.api.keys import SCHEDULER
from gguf_imagegen.errors import ServerBusy
from gguf_imagegen.jobs.plan import Plan

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


MAX_WAITING = 256 << 20
"""Bytes of pixels that jobs may hold until they have run, before no more such jobs are taken."""

PIXELS = web.AppKey("pixels", Pixels)


def _check_waiting(app: web.Application) -> None:
    """Raises ServerBusy if the jobs that wait hold as many pixels as they may, whatever their number is."""
    plans = [job.plan for job in app[SCHEDULER].jobs.values() if not job.ended]
    if sum(_bytes_of(each) for each in plans) > MAX_WAITING:
        raise ServerBusy("the jobs that wait hold too many large pictures; try again", retry_after=30)


def _bytes_of(plan: Plan) -> int:
    spec = plan.spec
    alone = (spec.init_image, spec.mask, spec.control_image, plan.original, plan.mask)
    return sum(len(each.data) for each in (*plan.pictures, *spec.ref_images, *alone) if each)


async def in_turn(app: web.Application, memory: int, work: Callable[[], T]) -> T:
    """The result of this work on pictures, which takes so many bytes, made in a thread when there is room.

    Raises ServerBusy if there is none for too long, or if jobs that wait hold too much already. The room is
    held until the thread has ended, even if nobody waits for it any more.
    """
    if not memory:
        return await asyncio.to_thread(work)
    is_large = memory > SMALL
    with (app[PIXELS].large if is_large else app[PIXELS].small).share() as share:
        await share.grow(memory)
        _check_waiting(app)
        running = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        finally:
            await asyncio.wait({running})
            if is_large:
                await asyncio.to_thread(heap.give_back)
