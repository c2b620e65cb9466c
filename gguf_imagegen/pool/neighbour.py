"""Another program that shares the card, such as a language model's server: it is asked to make room."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import shlex
import time
from contextlib import suppress
from typing import Final

from gguf_imagegen.machine import calls
from gguf_imagegen.vocabulary.errors import InvalidRequest

log = logging.getLogger(__name__)

PATIENCE: Final = 30.0
"""Seconds within which it must have answered, or the command have ended."""
LEAVING: Final = 5.0
"""Seconds for which its memory may still become free after it said yes: Ollama answers before it unloads."""


class Neighbour:
    """`wish` is a URL that gets a POST, perhaps with a space and a JSON body behind it, or a command.

    The command is run without a shell. None asks nobody. Raises InvalidRequest for what is neither.
    """

    def __init__(self, wish: str | None, patience: float = PATIENCE) -> None:
        self._url, self._body = "", b""
        self._command: list[str] = []
        self._patience = patience
        self._left = -math.inf
        if wish is not None:
            self._read(wish.strip())

    def _read(self, wish: str) -> None:
        url, _, body = wish.partition(" ")
        if calls.is_address(url):
            self._url, self._body = url, body.strip().encode()
            if body and not _is_json(body):
                raise InvalidRequest("before_load: what follows the URL is not JSON", param="before_load")
            return
        with suppress(ValueError):  # a quote that is not closed
            self._command = shlex.split(wish)
        if not self._command:
            raise InvalidRequest("before_load: is neither a URL nor a command", param="before_load")

    @property
    def leaving(self) -> bool:
        """Whether it said yes so lately that more memory may be free in a moment."""
        return time.monotonic() - self._left < LEAVING

    async def ask(self) -> None:
        """Have it make room. It may refuse: the load goes on, and the log says why."""
        if not (self._url or self._command):
            return
        try:
            if self._url:
                await calls.post(self._url, self._body, patience=self._patience)
            else:
                await self._run()
        except calls.CallFailed as exc:
            asked = calls.origin_of(self._url) if self._url else self._command[0]
            log.warning("--before-load: %s did not make room: %s; loading all the same", asked, exc)
        else:
            self._left = time.monotonic()

    async def _run(self) -> None:
        nothing = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=nothing, stdout=nothing, stderr=nothing
            )
        except OSError as exc:
            raise calls.CallFailed(exc.strerror or "it cannot be started") from None
        try:
            code = await asyncio.wait_for(process.wait(), self._patience)
        except asyncio.TimeoutError:
            raise calls.CallFailed(f"not done within {self._patience:g} s") from None
        finally:
            with suppress(ProcessLookupError):  # whoever waited may be gone, too
                process.kill()
        if code:
            raise calls.CallFailed(f"exit code {code}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
