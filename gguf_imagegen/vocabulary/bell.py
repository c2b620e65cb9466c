"""What rings as often as something happens, and wakes all who listen at that time."""

from __future__ import annotations

import asyncio


class Bell:
    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        rung, self._rung = self._rung, asyncio.Event()
        rung.set()

    async def heard(self, timeout: float | None = None) -> bool:
        """Wait for the next ring; False if `timeout` seconds passed first."""
        try:
            await asyncio.wait_for(self._rung.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True
