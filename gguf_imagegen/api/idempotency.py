"""Requests that come twice, from an SDK that tries again or with one `Idempotency-Key`: both get one job.

The official OpenAI SDKs say with each request for how long they wait and how often they have tried
(`x-stainless-read-timeout`, `x-stainless-timeout`, `x-stainless-retry-count`). A client that leaves because
of its own time-out is back within seconds, so its job goes on for LINGER seconds. Digests of key and body are
in the job's ticket, so that a repeated request finds its job after a restart of the server, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.jobs.job import Job
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.ticket import Repeat
from gguf_imagegen.vocabulary.errors import InvalidRequest

LINGER = 10.0
"""Seconds; the SDKs wait at most 8 between two tries."""
REMEMBERED = 1000


@dataclass
class Attempt:
    """One wish, however often it was sent; `lock` is held from its first sight until it has its job."""

    repeat: Repeat
    began: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    job: Job | PictureSet | None = None
    followers: int = 0

    @property
    def joinable(self) -> Job | None:
        """Its job, unless that has failed: then it is made anew."""
        job = self.job
        return job if isinstance(job, Job) and not job.cancel_requested and job.error is None else None

    @property
    def joinable_set(self) -> PictureSet | None:
        """Its set, unless that was ended before its items."""
        return self.job if isinstance(self.job, PictureSet) and self.job.end is None else None


class Attempts:
    """The latest wishes of clients that may repeat them."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[str, Attempt] = OrderedDict()

    async def of(self, request: web.Request, fields: Mapping[str, Any]) -> Attempt | None:
        """The wish that this request belongs to; None for clients that do not repeat themselves."""
        given = request.headers.get("Idempotency-Key", "")
        if not given and "x-stainless-retry-count" not in request.headers:
            return None
        body = await asyncio.to_thread(_digest, fields)
        caller = caller_of(request).name
        key = _digest({"path": request.path, "caller": caller, "key": given or body})
        repeated = given or request.headers.get("x-stainless-retry-count") not in ("0", "")
        known = self._by_key.get(key)
        if known is not None and repeated:
            if known.repeat.body != body:
                raise InvalidRequest(
                    "Idempotency-Key: was used for another request; send a new one", param="Idempotency-Key"
                )
            known.began = time.monotonic()
            return known
        return self._add(Attempt(Repeat(key, body), time.monotonic()))

    def take_back(self, repeat: Repeat, job: Job | PictureSet) -> None:
        """The wish of a job, or of a set, that an earlier run of the server took."""
        self._add(Attempt(repeat, time.monotonic(), job=job))

    def _add(self, attempt: Attempt) -> Attempt:
        self._by_key[attempt.repeat.key] = attempt
        self._by_key.move_to_end(attempt.repeat.key)
        while len(self._by_key) > REMEMBERED:
            self._by_key.popitem(last=False)
        return attempt

    def patience(self, request: web.Request, job: Job) -> float:
        """Seconds for which the job of a client that has just left should go on without it."""
        attempt = self._of_job(job)
        if attempt is None:
            return 0.0
        if "Idempotency-Key" in request.headers:
            return LINGER
        limit = read_timeout(request)
        timed_out = limit is not None and time.monotonic() - attempt.began > 0.9 * limit
        return LINGER if timed_out else 0.0

    @contextmanager
    def following(self, job: Job) -> Iterator[None]:
        """Count a client that waits for this job."""
        attempt = self._of_job(job)
        if attempt is not None:
            attempt.followers += 1
        try:
            yield
        finally:
            if attempt is not None:
                attempt.followers -= 1

    def abandoned(self, job: Job) -> bool:
        """Whether nobody waits for it any more."""
        attempt = self._of_job(job)
        return attempt is None or attempt.followers == 0

    def _of_job(self, job: Job) -> Attempt | None:
        return next((each for each in reversed(self._by_key.values()) if each.job is job), None)


ATTEMPTS = web.AppKey("attempts", Attempts)


def read_timeout(request: web.Request) -> float | None:
    """Seconds for which the client waits for the next byte, if it says so."""
    for name in ("x-stainless-read-timeout", "x-stainless-timeout"):
        try:
            seconds = float(request.headers.get(name, ""))
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds > 0:
            return seconds
    return None


def _digest(fields: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(fields):
        digest.update(b"%d " % len(piece))
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: object) -> Iterator[bytes]:
    """A value in pieces that no other value has; files are not copied for it."""
    if isinstance(value, Mapping):
        yield b"object %d" % len(value)
        for key in sorted(value):
            yield from _pieces(key)
            yield from _pieces(value[key])
    elif isinstance(value, list | tuple):
        yield b"list %d" % len(value)
        for item in value:
            yield from _pieces(item)
    elif isinstance(value, bytes):
        yield b"bytes"
        yield value
    else:
        yield type(value).__name__.encode()
        yield str(value).encode(errors="surrogatepass")
