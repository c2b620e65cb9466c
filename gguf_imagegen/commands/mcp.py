"""MCP over stdin and stdout, for chat programs that start their servers: what it is told goes to /mcp of a
server that runs, or of one that runs inside this process for as long.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    nullcontext,
)
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aiohttp import web

from gguf_imagegen import __version__
from gguf_imagegen.api.app import make_app
from gguf_imagegen.api.connections import bounds_here, listen
from gguf_imagegen.api.dialects.mcp.routes import require_sdk
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.pull import pull_missing
from gguf_imagegen.engines.backend import Backend, UnknownBackend, named_backend
from gguf_imagegen.engines.sdcpp.choice import choose_build
from gguf_imagegen.jobs import state
from gguf_imagegen.machine import heap, logs, loop
from gguf_imagegen.pictures import decode
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidImage

if TYPE_CHECKING:
    from mcp import Client

log = logging.getLogger(__name__)
PATH = "/mcp"
PICTURES = ("image", "mask")
"""Arguments of tools that may name a file of this machine."""
LONGEST_PATH = 4096
CONNECT, READ = 30.0, 300.0
"""Seconds; the server says something every few seconds while a tool works."""


def run_mcp(settings: Settings, url: str | None) -> int:
    """Serve stdin until its end. Raises NotInstalled, and ConnectionError if the server is not there."""
    require_sdk()
    logs.set_up(settings.log_level)
    if url is not None:
        return loop.run(_serve(settings, nullcontext(url)))
    heap.keep_large_blocks_apart()
    here = settings.model_copy(update={"host": "127.0.0.1", "port": 0, "public_url": None, "callers": None})
    choose_build(here)
    try:
        backend = named_backend(here.backend)(here)
    except UnknownBackend as exc:
        print(f"gguf-imagegen: {exc}", file=sys.stderr)
        return 1
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(state.folder(here))
        except state.Unusable as exc:
            log.warning("jobs and pictures are kept only while this runs: %s", exc)
            folder = None
        return pull_missing(here) or loop.run(_serve(here, _own_server(here, backend, folder)))


async def _serve(settings: Settings, reached: AbstractAsyncContextManager[str]) -> int:
    from mcp.server.stdio import stdio_server

    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(reached)
        client = await _connected(stack, _endpoint(url), settings)
        streams = await stack.enter_async_context(stdio_server())
        server = _relay(client, settings.max_input_pixels)
        await server.run(*streams, server.create_initialization_options())
    return 0


@asynccontextmanager
async def _own_server(settings: Settings, backend: Backend, folder: state.State | None) -> AsyncIterator[str]:
    """A server on a free port of this machine; its address."""
    catalog, default = choose_models(settings)
    app = make_app(settings, catalog, default, backend, folder)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    assert runner.server is not None
    try:
        listening = await listen(runner.server, settings.host, 0, bounds_here())
        url = f"http://{settings.host}:{listening.sockets[0].getsockname()[1]}"
        log.info("gguf-imagegen serves %s at %s", default, url)
        try:
            yield url
        finally:
            listening.close()
    finally:
        await runner.cleanup()


def _endpoint(url: str) -> str:
    return url if url.endswith(PATH) else url.rstrip("/").removesuffix("/v1") + PATH


async def _connected(stack: AsyncExitStack, url: str, settings: Settings) -> Client:
    """A client of the server there. The first key of the settings is sent."""
    import httpx2
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    keys = [key.get_secret_value() for key in settings.api_key]
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    http = httpx2.AsyncClient(headers=headers, timeout=httpx2.Timeout(CONNECT, read=READ))
    await stack.enter_async_context(http)
    await _check(http, url)
    return await stack.enter_async_context(Client(streamable_http_client(url, http_client=http)))


async def _check(http: Any, url: str) -> None:
    """Say in words why a server cannot be used; the protocol's client would not."""
    import httpx2

    question = {"jsonrpc": "2.0", "id": 0, "method": "ping"}
    try:
        answer = await http.post(url, json=question, headers={"Accept": "application/json"})
    except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise ConnectionError(
            f"no server answers at {url} ({type(exc).__name__}); start one with `gguf-imagegen serve`,"
            " or leave --url out"
        ) from None
    if answer.status_code == 401:
        raise ConnectionError(f"{url} wants another key: set GGUF_IMAGEGEN_API_KEY")
    if answer.status_code in (404, 405, 501):
        raise ConnectionError(
            f"the server at {url} speaks no MCP: install its extra, pip install 'gguf-imagegen[mcp]'"
        )


def _relay(client: Client, max_pixels: int) -> Any:
    """An MCP server that has the tools of another, and files of this machine."""
    from mcp.server import Server, ServerRequestContext
    from mcp.types import (
        CallToolRequestParams,
        CallToolResult,
        ListToolsResult,
        PaginatedRequestParams,
        TextContent,
    )

    async def list_tools(
        context: ServerRequestContext[Any], params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        return await client.list_tools()

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        try:
            arguments = await asyncio.to_thread(with_files, params.arguments or {}, max_pixels)
        except ImagegenError as exc:
            words = f"{exc.code}: {exc}"
            return CallToolResult(content=[TextContent(text=words)], is_error=True)
        tell = context.session.report_progress
        return await client.call_tool(params.name, arguments, progress_callback=tell)

    return Server(
        "gguf-imagegen",
        version=__version__,
        instructions=client.instructions,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def with_files(arguments: Mapping[str, Any], max_pixels: int) -> dict[str, Any]:
    """Pictures that are named by a path on this machine become data: URLs. Reads files.

    Nothing but a picture is read and sent on. Raises InvalidImage.
    """
    return {
        name: _with_file(value, name, max_pixels) if name in PICTURES else value
        for name, value in arguments.items()
    }


def _with_file(value: Any, name: str, max_pixels: int) -> Any:
    if isinstance(value, list):
        return [_with_file(each, name, max_pixels) for each in value]
    path = _path(value) if isinstance(value, str) else None
    if path is None:
        return value
    try:
        file = path.read_bytes()
    except OSError as exc:
        raise InvalidImage(f"{path.name} cannot be read: {exc.strerror}", param=name) from None
    decode.inspect(file, max_pixels=max_pixels, param=name, max_aspect=1000)
    return f"data:application/octet-stream;base64,{base64.b64encode(file).decode('ascii')}"


def _path(value: str) -> Path | None:
    """The file that the text names; base64 of a JPEG begins with a slash, too."""
    if len(value) > LONGEST_PATH:
        return None
    if value.startswith("file://"):
        return Path(unquote(urlsplit(value).path))
    path = Path(value).expanduser() if value.startswith(("/", "~/")) else Path(value)
    if path.is_absolute() and (path.is_file() or path.suffix):
        return path
    return None
