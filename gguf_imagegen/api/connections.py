"""The open connections: how many there may be, and how long one that asks for nothing may stay."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong

from gguf_imagegen.api.middleware import SERVER, error_answer
from gguf_imagegen.api.proxies import SEEN
from gguf_imagegen.api.root_path import serve_below
from gguf_imagegen.machine.limits import open_files
from gguf_imagegen.vocabulary.errors import InvalidRequest

log = logging.getLogger(__name__)
MOST = 1024
OTHER_FILES = 64
"""Open files left for everything that is no connection: pipes of workers, model files, images, pulls."""
BACKLOG = 512


@dataclass(frozen=True)
class Bounds:
    """`most` connections at once. The head of a request is whole within `head_seconds` and `head_bytes`, and
    the next one begins within `idle_seconds`; 75 s are more than what proxies wait before they reuse one.
    """

    most: int = MOST
    head_seconds: float = 15.0
    head_bytes: int = 64 * 1024
    idle_seconds: float = 75.0


def bounds_here() -> Bounds:
    """As many connections as the limit of open files has room for; a lower soft limit is raised first."""
    files = open_files(MOST + OTHER_FILES)
    return Bounds(int(min(MOST, max(files // 4, files - OTHER_FILES))))


async def listen(
    server: web.Server,
    host: str,
    port: int,
    bounds: Bounds,
    *,
    root_path: str = "",
    tls: ssl.SSLContext | None = None,
) -> asyncio.Server:
    """Serve at this address, below `root_path` too; OSError if it cannot be had."""
    serve_below(server, root_path)
    connections = Connections(bounds)
    loop = asyncio.get_running_loop()
    handshake = bounds.head_seconds if tls else None
    return await loop.create_server(
        lambda: Connection(connections, server),
        host,
        port,
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=handshake,
    )


class Connections:
    """All that are open. Those at work are never closed for others, those without a request are."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._open: set[Connection] = set()

    def add(self, connection: Connection) -> None:
        """Make room if there is none; the new one is closed if all others are at work."""
        if len(self._open) >= self.bounds.most:
            self._make_room()
        self._open.add(connection)
        if len(self._open) > self.bounds.most:
            connection.drop()

    def discard(self, connection: Connection) -> None:
        self._open.discard(connection)

    def _make_room(self) -> None:
        """Close those that were silent for longest, of the address that has the most of them; some at once,
        so that a flood does not sort all of them for every one.
        """
        silent: dict[str, list[Connection]] = defaultdict(list)
        for each in sorted(self._open, key=lambda each: each.heard, reverse=True):
            if not each.at_work:
                silent[each.address].append(each)
        for _ in range(max(1, self.bounds.most // 16)):
            longest = max(silent.values(), key=len, default=None)
            if not longest:
                break
            longest.pop().drop()


class Connection(web.RequestHandler):
    """One of them, as aiohttp serves it; `heard` is when it last began or ended a request (loop's clock).

    `address` is the peer's, behind a trusted proxy that of the client who was served last.
    """

    def __init__(self, connections: Connections, server: web.Server) -> None:
        bounds = connections.bounds
        loop = asyncio.get_running_loop()
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=bounds.idle_seconds,
            auto_decompress=False,  # `api.body` does it, within bounds
        )
        self.address = ""
        self.heard = loop.time()
        self._connections = connections
        self._head = 0
        self._late: asyncio.TimerHandle | None = None

    @property
    def at_work(self) -> bool:
        """Whether a handler has its request. To send the end of an answer, or to read on, is no work."""
        return self._current_request is not None

    def drop(self) -> None:
        """Close it now, whatever there is left to send."""
        self._connections.discard(self)
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self._expect_head()
        self._connections.add(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.discard(self)
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        waits = (
            self._waiter is not None and not self._waiter.done()
        )  # done: a request is there, not taken yet
        before = self._request_count
        super().data_received(data)
        if self._request_count > before:
            self.heard = self._loop.time()
            self._forget_head()
        elif waits:
            self._head += len(data)
            self._expect_head()
            if self._head > self._connections.bounds.head_bytes:
                log.info("connection of %s closed: the head of its request is too large", self.address)
                self.drop()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        self.heard = self._loop.time()
        if SEEN in request:
            self.address = request[SEEN].address
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is told in one line, without a word of it: it may be somebody's key."""
        if isinstance(exc, ConnectionError):
            raise exc  # nobody is there to be answered
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        what = "a line is too long" if isinstance(exc, LineTooLong) else type(exc).__name__
        log.info("malformed request from %s: %s", request.remote, what)
        error = InvalidRequest(f"the HTTP request is malformed: {what}")
        answer = error_answer(error, headers={"Server": SERVER})
        answer.force_close()
        return answer

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Of defects; a body that breaks off or is malformed, read on after its answer, is none."""
        if not isinstance(kwargs.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def _expect_head(self) -> None:
        if self._late is None:
            self._late = self._loop.call_later(self._connections.bounds.head_seconds, self._close_late)

    def _forget_head(self) -> None:
        self._head = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        if not self.at_work:
            self.drop()
