"""A slow cable between a machine and the switch, for kernels without `tc netem`: delay, loss, and a rate.

`python -m scripts.network.cable NAME DELAY LOSS RATE`: seconds each way, a share of the packets, bits a
second each way, 0 for no bound. Its ends are NAME and far-NAME, in the namespace where it runs, until it is
killed or its parent ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Final

from gguf_imagegen.machine.processes import die_with_parent

TUNSETIFF: Final = 0x400454CA
TAP_WITHOUT_HEADERS: Final = 0x1002
MOST: Final = 256 << 10
"""Bytes that wait at a cable that is too slow for what comes; more are lost."""


class Direction:
    """From one end to the other."""

    def __init__(self, source: int, target: int, delay: float, loss: float, rate: float) -> None:
        self.source = source
        self._target = target
        self._delay, self._loss, self._rate = delay, loss, rate
        self._frames: deque[tuple[float, bytes]] = deque()
        self._waiting = 0
        self._free_at = 0.0

    def take(self, now: float) -> None:
        frame = os.read(self.source, 65536)
        if random.random() < self._loss or self._waiting > MOST:
            return
        self._free_at = max(now, self._free_at) + (8 * len(frame) / self._rate if self._rate else 0.0)
        self._frames.append((self._free_at + self._delay, frame))
        self._waiting += len(frame)

    def give(self, now: float) -> float:
        """Seconds until the next frame is due."""
        while self._frames and self._frames[0][0] <= now:
            _, frame = self._frames.popleft()
            self._waiting -= len(frame)
            with suppress(OSError):  # the other end is down
                os.write(self._target, frame)
        return self._frames[0][0] - now if self._frames else 1.0


def end(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADERS))
    return descriptor


def main(name: str, delay: str, loss: str, rate: str) -> None:
    die_with_parent()
    near, far = end(name), end(f"far-{name}")
    character = float(delay), float(loss), float(rate)
    ways = [Direction(near, far, *character), Direction(far, near, *character)]
    by_source = {way.source: way for way in ways}
    while True:
        wait = min(way.give(time.monotonic()) for way in ways)
        for source in select.select(list(by_source), [], [], max(0.0, wait))[0]:
            by_source[source].take(time.monotonic())


if __name__ == "__main__":
    main(*sys.argv[1:])
