"""Slow clients get all, those that take nothing are given up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.streams import writing
from gguf_imagegen.vocabulary.waits import Waits


class Connection(asyncio.WriteTransport):
    """Has so many bytes left at each look; `taken` is set when they are all gone."""

    def __init__(self, left: Iterator[int]) -> None:
        super().__init__()
        self.left = left
        self.taken = asyncio.Event()

    def get_write_buffer_size(self) -> int:
        left = next(self.left)
        if not left:
            self.taken.set()
        return left


async def send(left: Iterator[int]) -> None:
    """Write to a client that takes a single answer like this."""
    connection = Connection(left)
    service = SimpleNamespace(waits=Waits(unread=0.01))
    request: Any = SimpleNamespace(transport=connection, app={SERVICE: service})

    async def write(data: bytes) -> None:
        await connection.taken.wait()

    response: Any = SimpleNamespace(write=write)
    await asyncio.wait_for(writing.write(request, response, b"x"), 60)


async def test_a_slow_client_gets_all() -> None:
    """It takes ten times as long as one may take nothing, but goes on taking."""
    slow = (size - size % 4 for size in range(4 * 20, -1, -1))
    await send(slow)


async def test_who_takes_nothing_is_given_up() -> None:
    """Also in the middle of an answer."""
    with pytest.raises(asyncio.TimeoutError):
        await send(iter([9, 8, *[7] * (1 + writing.LOOKS)]))
