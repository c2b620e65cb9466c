"""Memory that all requests share: who needs more than is left waits for its turn, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gguf_imagegen.vocabulary.errors import ServerBusy


class Budget:
    """So many bytes for all who ask, in the order in which they came.

    The oldest share always gets what it asks for: of shares that grow bit by bit one can go on, and what is
    larger than the whole budget is had alone. So the budget is exceeded by one request at most.
    """

    def __init__(self, total: int, patience: float, what: str) -> None:
        self.total = total
        self.used = 0
        self._patience = patience
        self._what = what
        self._shares: dict[Share, None] = {}
        """Those that hold or want something, the oldest first."""

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A part of the budget, empty at first, that is given back at the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            share.release()

    def _fits(self, share: Share, amount: int) -> bool:
        oldest = next(iter(self._shares))
        return share is oldest or self.used + amount <= self.total

    def _grant(self) -> None:
        """Let those go on whose turn it is; nobody overtakes an older one that waits."""
        for share in self._shares:
            if share.turn is None or share.turn.done():
                continue
            if not self._fits(share, share.wanted):
                break
            share.take()

    def take_back(self, share: Share) -> None:
        self._shares.pop(share, None)
        self.used -= share.held
        self._grant()

    async def grow(self, share: Share, amount: int) -> None:
        """Raises ServerBusy if there is no room for so long that the client had better come back."""
        self._shares.setdefault(share)
        share.wanted, share.turn = amount, asyncio.get_running_loop().create_future()
        self._grant()
        try:
            await asyncio.wait_for(share.turn, self._patience)
        except asyncio.TimeoutError:
            raise ServerBusy(
                f"the server is busy with {self._what} of other requests; try again", retry_after=10
            ) from None
        finally:
            share.turn = None
            self._grant()


class Share:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0
        self.wanted = 0
        self.turn: asyncio.Future[None] | None = None

    async def grow(self, amount: int) -> None:
        """Wait until there is room for so many bytes more."""
        await self._budget.grow(self, amount)

    def take(self) -> None:
        assert self.turn is not None
        self._budget.used += self.wanted
        self.held += self.wanted
        self.turn.set_result(None)

    def release(self) -> None:
        """Give everything back; the share may grow again."""
        self._budget.take_back(self)
        self.held = 0
