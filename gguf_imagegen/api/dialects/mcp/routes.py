"""/mcp: the Model Context Protocol over HTTP, by the SDK's ASGI application behind this server's own doors.

Keys, origins and bounds of bodies are those of all routes; what passes goes to the SDK, which knows sessions,
streams and protocol versions (https://modelcontextprotocol.io/specification).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from importlib.util import find_spec
from typing import Any, TypeAlias

from aiohttp import web

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialect import Dialect, ErrorForm
from gguf_imagegen.api.dialects.mcp.messages import FRAMES, HELLO, JsonRpc, refusal, refused
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import EVENTS, JSON, READING, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.streams.writing import hang_up, write
from gguf_imagegen.vocabulary.errors import MethodNotAllowed, NotFound, NotInstalled

Message: TypeAlias = MutableMapping[str, Any]
Asgi: TypeAlias = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Coroutine[Any, Any, None],
]
INSTALL = "pip install 'gguf-imagegen[mcp]'"
REFUSALS = (*READING, NotFound, MethodNotAllowed, NotInstalled)
SAID_ANEW = ("accept", "content-type", "content-length", "content-encoding", "transfer-encoding")
LAST_WORDS = 5.0
"""Seconds that the application has to notice that its client left."""
ESCAPED = 6
"""Times the length of a body that it takes to write it anew, at most."""


class Endpoint:
    """The SDK's application, imported and started by the first call, ended with the server."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._app: asyncio.Future[Asgi] | None = None
        self._task: asyncio.Task[None] | None = None

    async def app(self) -> Asgi:
        if self._app is None:
            self._app = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(self._app))
        return await asyncio.shield(self._app)

    async def close(self, app: web.Application) -> None:
        """Ends all sessions and their streams, which would hold the server up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self, ready: asyncio.Future[Asgi]) -> None:
        try:
            server = await asyncio.to_thread(_server)
            manager = server.session_manager(ESCAPED * self._largest)
            async with manager.run():
                ready.set_result(manager.handle_request)
                await asyncio.Event().wait()
        except Exception as exc:
            if ready.done():
                raise
            ready.set_exception(exc)


ENDPOINT = web.AppKey("mcp", Endpoint)


def require_sdk() -> None:
    """Raises NotInstalled without the extra."""
    if find_spec("mcp") is None:
        raise NotInstalled(f"MCP needs a library that is not installed: run {INSTALL} and start again")


@endpoint(
    JsonRpc,
    request=JsonRpc,
    required=("jsonrpc", "method"),
    errors=REFUSALS,
    also={202: None},
    media=(JSON, EVENTS),
    events=FRAMES,
    example={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": HELLO},
)
async def mcp(request: web.Request) -> web.StreamResponse:
    """POST /mcp: one message of the Model Context Protocol (streamable HTTP): tools for chat programs."""
    return await _handled(request)


@endpoint(None, errors=REFUSALS, media=(EVENTS,), events=FRAMES)
async def stream(request: web.Request) -> web.StreamResponse:
    """GET /mcp: what a session has to say beside its answers; for clients of MCP before July 2026."""
    return await _handled(request)


@endpoint(None, errors=REFUSALS)
async def end(request: web.Request) -> web.StreamResponse:
    """DELETE /mcp: end a session; for clients of MCP before July 2026."""
    return await _handled(request)


async def _handled(request: web.Request) -> web.StreamResponse:
    require_sdk()
    body = json.dumps(await read_body(request)).encode() if request.method == "POST" else b""
    app = await request.app[ENDPOINT].app()
    answer = _Answer(request, body)
    serving = asyncio.create_task(app(_scope(request), answer.receive, answer.send))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:  # the client left; the application ends by itself when it hears of it
        answer.gone.set()
        await asyncio.wait([serving], timeout=LAST_WORDS)
        serving.cancel()
        raise
    return await answer.whole()


def _server() -> Any:
    from gguf_imagegen.api.dialects.mcp import server

    return server


def _scope(request: web.Request) -> Message:
    """The request as ASGI has it; its body is written anew, and any client can read what is answered."""
    server = _server()
    headers = [
        (name.lower().encode("latin-1"), value.encode("utf-8", "surrogateescape"))
        for name, value in request.headers.items()
        if name.lower() not in SAID_ANEW
    ]
    headers += [(b"content-type", JSON.encode()), (b"accept", f"{JSON}, {EVENTS}".encode())]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.rel_url.raw_path.encode(),
        "query_string": request.query_string.encode(),
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        "user": server.user(caller_of(request).name),
        server.REQUEST: request,
    }


class _Answer:
    """What the application reads and sends; one piece becomes a whole answer, several become a stream."""

    def __init__(self, request: web.Request, body: bytes) -> None:
        self.gone = asyncio.Event()
        """The client left."""
        self._request = request
        self._left = [body]
        self._start: Message = {}
        self._response: web.StreamResponse | None = None

    async def receive(self) -> Message:
        if self._left:
            return {"type": "http.request", "body": self._left.pop(), "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Nothing to a client that left, as ASGI has it."""
        if self.gone.is_set():
            return
        try:
            await self._send(message)
        except (ConnectionError, asyncio.TimeoutError):
            hang_up(self._request)
            self.gone.set()

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            if dict(message.get("headers", ())).get(b"content-type", b"").startswith(EVENTS.encode()):
                await self._stream(b"")
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        if self._response is None and not more:
            self._response = self._whole(data)
        elif self._response is None or self._response.prepared:
            await self._stream(data)

    async def _stream(self, data: bytes) -> None:
        if self._response is None:
            self._response = self._made(web.StreamResponse())
            await self._response.prepare(self._request)
        if data:
            await write(self._request, self._response, data)

    async def whole(self) -> web.StreamResponse:
        assert self._response is not None, "the application has not answered"
        if self._response.prepared and not self.gone.is_set():
            await self._response.write_eof()
        return self._response

    def _whole(self, data: bytes) -> web.StreamResponse:
        """Errors that the application has no words for, or plain ones, get those of JSON-RPC."""
        made = self._made(web.Response(body=data))
        if made.status >= 400 and b"content-type" not in dict(self._start.get("headers", ())):
            words = data.decode() or made.reason or "refused"
            return reply(JsonRpc, refusal(words), status=made.status)
        return made

    def _made(self, response: web.StreamResponse) -> web.StreamResponse:
        response.set_status(self._start["status"])
        for name, value in self._start.get("headers", ()):
            if name.lower() not in (b"content-length", b"connection"):
                response.headers[name.decode("latin-1")] = value.decode("latin-1")
        return response


def _prepare(app: web.Application) -> None:
    app[ENDPOINT] = Endpoint(app[SERVICE].settings.max_body_bytes)
    app.on_shutdown.append(app[ENDPOINT].close)


DIALECT = Dialect(
    "mcp",
    "MCP",
    [web.get("/mcp", stream, allow_head=False), web.post("/mcp", mcp), web.delete("/mcp", end)],
    roots=("/mcp",),
    errors=ErrorForm(JsonRpc, refused),
    prepare=_prepare,
)
