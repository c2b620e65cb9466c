"""Memory that requests share: in turn, without end to nobody, and never for ever."""

from __future__ import annotations

import asyncio

import pytest

from gguf_imagegen.jobs.budget import Budget, Share
from gguf_imagegen.vocabulary.errors import ServerBusy


def budget(patience: float = 30.0) -> Budget:
    return Budget(100, patience, "pictures")


async def settled(*tasks: asyncio.Task[None]) -> list[bool]:
    """Which of these are done when nothing moves any more."""
    for _ in range(10):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


def growing(share: Share, amount: int) -> asyncio.Task[None]:
    return asyncio.create_task(share.grow(amount))


async def test_what_fits_is_had_at_once() -> None:
    shared = budget()
    with shared.share() as one, shared.share() as other:
        await one.grow(60)
        await other.grow(40)
        assert shared.used == 100
        one.release()
        assert shared.used == 40
    assert shared.used == 0


async def test_turns_are_taken_in_order() -> None:
    """A small one that came later does not overtake a large one that waits."""
    shared = budget()
    with shared.share() as first, shared.share() as second, shared.share() as third:
        await first.grow(80)
        large, small = growing(second, 50), growing(third, 10)
        assert await settled(large, small) == [False, False]
        first.release()
        await asyncio.gather(large, small)
        assert shared.used == 60


async def test_more_than_there_is_is_had_alone() -> None:
    shared = budget()
    with shared.share() as large:
        await large.grow(1000)
        with shared.share() as other:
            waiting = growing(other, 1)
            assert await settled(waiting) == [False]
            large.release()
            await waiting


async def test_shares_that_grow_bit_by_bit_never_block_each_other() -> None:
    """When all is taken by shares that want more, the oldest goes on, and then the next."""
    shared = budget()
    with shared.share() as idle, shared.share() as old, shared.share() as young:
        await idle.grow(10)
        idle.release()  # a stream that goes on for hours has no part in it
        await old.grow(50)
        await young.grow(50)
        later = growing(young, 30)
        await old.grow(30)
        assert await settled(later) == [False]
        old.release()
        await later


async def test_waiting_ends_with_a_word() -> None:
    """Who gets no room is told when to come back, and leaves nothing behind."""
    shared = budget(patience=0.01)
    with shared.share() as first:
        await first.grow(100)
        with pytest.raises(ServerBusy) as caught, shared.share() as second:
            await second.grow(1)
        assert (caught.value.status, caught.value.retry_after) == (503, 10)
        first.release()
        with shared.share() as third:
            await third.grow(100)


async def test_who_leaves_makes_room_for_the_next() -> None:
    shared = budget()
    with shared.share() as first:
        await first.grow(60)
        with shared.share() as second, shared.share() as third:
            leaving, waiting = growing(second, 100), growing(third, 40)
            assert await settled(leaving, waiting) == [False, False]
            leaving.cancel()
            await waiting
            assert shared.used == 100
