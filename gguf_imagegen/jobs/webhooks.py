"""Tells the ends of jobs to the addresses that their requests name, if the administrator has listed these."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol

from msgspec.structs import replace
from pydantic import SecretStr
from yarl import URL

from gguf_imagegen.jobs.letter import Letter, signed
from gguf_imagegen.machine import calls
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest
from gguf_imagegen.vocabulary.waits import USUAL, Waits

log = logging.getLogger(__name__)

PREFIX: Final = "whsec_"
SHORTEST, LONGEST = 24, 64
"""Bytes of a key, by the standard."""
PATIENCE: Final = 15.0
"""Seconds for one attempt."""
AT_ONCE: Final = 8
MOST: Final = 1000
"""Letters that wait; further ones are lost, and the log says so."""
LAST: Final = 2.0
"""Seconds that attempts get at the end of the server."""
GONE: Final = 410
"""The receiver wants nothing more."""


class Outbox(Protocol):
    """Keeps letters over restarts of the server."""

    def keep(self, letter: Letter) -> None:
        """It was tried again, and will be."""

    def discard(self, letter: Letter) -> None:
        """It has arrived, or never will."""


class Webhooks:
    """Sends letters, each until it has arrived or the attempts are used up.

    A receiver may get one twice, with the same id: the server may be killed before it has noted the answer.
    Raises InvalidRequest for settings that make no sense.
    """

    def __init__(self, settings: Settings, outbox: Outbox | None = None, waits: Waits = USUAL) -> None:
        self._prefixes = [_prefix(text) for text in settings.webhooks]
        self._keys = [_key(secret) for secret in settings.webhook_secret]
        self._outbox = outbox
        self._waits = waits.webhook_again
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._closing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        if self._prefixes and not self._keys:
            raise InvalidRequest(
                "webhook_secret: is needed with --webhooks, so that receivers can tell who sends:"
                ' take "whsec_$(openssl rand -base64 32)"',
                param="webhook_secret",
            )

    @property
    def waiting(self) -> int:
        """How many letters are neither there nor given up."""
        return len(self._tasks)

    def check(self, address: str | None) -> None:
        """Raise InvalidRequest unless this address may be called."""
        if address is None or self._allowed(address):
            return
        why = "is not one that the server's administrator allows" if self._prefixes else (
            "this server has none; its administrator can list addresses with --webhooks"
        )  # fmt: skip
        raise InvalidRequest(f"webhook: {why}", param="webhook")

    def _allowed(self, address: str) -> bool:
        try:
            url = URL(address)
            return any(_within(url, prefix) for prefix in self._prefixes)
        except ValueError:
            return False

    def send(self, letters: Iterable[Letter]) -> None:
        """Have them sent when they are due. Call it in the event loop."""
        for letter in letters:
            if len(self._tasks) >= MOST:
                log.warning("webhook of job %s: dropped, %d others wait", letter.job, MOST)
                self._discard(letter)
                continue
            task = asyncio.create_task(self._deliver(letter))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _deliver(self, letter: Letter) -> None:
        left: Letter | None = letter
        while left is not None and await self._is_due(left):
            async with self._turn:
                fault = await self._try(left)
            left = self._noted(left, fault)

    def _noted(self, letter: Letter, fault: calls.CallFailed | None) -> Letter | None:
        """The letter with its next attempt; None when there is no other."""
        if fault is None:
            self._discard(letter)
            return None
        attempts, most = letter.attempts + 1, len(self._waits) + 1
        where = calls.origin_of(letter.url)
        words = f"webhook of job {letter.job} to {where}: {fault}, attempt {attempts} of {most}"
        if attempts >= most or fault.status == GONE:
            log.warning("%s; given up", words)
            self._discard(letter)
            return None
        log.info("%s", words)
        again = replace(letter, attempts=attempts, due=time.time() + self._waits[attempts - 1])
        if self._outbox is not None:
            self._outbox.keep(again)
        return again

    async def _is_due(self, letter: Letter) -> bool:
        """Wait until it is; False if the server ends before."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._closing.wait(), max(0.0, letter.due - time.time()))
            return False
        return True

    async def _try(self, letter: Letter) -> calls.CallFailed | None:
        if not self._allowed(letter.url):  # of an earlier run of the server, which had another list
            return calls.CallFailed("no longer in --webhooks", GONE)
        headers = signed(letter, self._keys, time.time())
        try:
            await calls.post(letter.url, letter.body, headers, patience=PATIENCE)
        except calls.CallFailed as exc:
            return exc
        return None

    def _discard(self, letter: Letter) -> None:
        if self._outbox is not None:
            self._outbox.discard(letter)

    async def close(self) -> None:
        """Let attempts end that are due; what has not arrived then is the next server's."""
        self._closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _within(url: URL, prefix: URL) -> bool:
    """Same scheme, host and port, and a path below, whatever is escaped in it; no user, no way up."""
    if url.user is not None or url.password is not None:
        return False
    if (url.scheme, url.host, url.port) != (prefix.scheme, prefix.host, prefix.port):
        return False
    parts, below = url.path.split("/"), prefix.path.rstrip("/").split("/")
    return ".." not in parts and parts[: len(below)] == below


def _prefix(text: str) -> URL:
    if not calls.is_address(text) or URL(text).user is not None or URL(text).query_string:
        raise InvalidRequest(
            f"webhooks: {text[:100]!r} is not the beginning of an address, such as https://host/path",
            param="webhooks",
        )
    return URL(text)


def _key(secret: SecretStr) -> bytes:
    text = secret.get_secret_value()
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not text.startswith(PREFIX) or not SHORTEST <= len(key) <= LONGEST:
        raise InvalidRequest(
            f"webhook_secret: must be {PREFIX} and {SHORTEST} to {LONGEST} bytes in base64:"
            f' take "{PREFIX}$(openssl rand -base64 32)"',
            param="webhook_secret",
        )
    return key
