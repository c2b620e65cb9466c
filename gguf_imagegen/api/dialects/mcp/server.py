"""The MCP server on the official SDK, https://github.com/modelcontextprotocol/python-sdk: tools in its types.

The one module of the API that imports the SDK; it is imported at the first call of /mcp.
"""

from __future__ import annotations

import base64
from typing import Any

from aiohttp import web
from mcp.server import Server, ServerRequestContext
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import (
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from gguf_imagegen import __version__
from gguf_imagegen.api.dialects.mcp.arguments import schema_of
from gguf_imagegen.api.dialects.mcp.showing import Shown
from gguf_imagegen.api.dialects.mcp.tools import TOOLS, Call
from gguf_imagegen.vocabulary.errors import ImagegenError

REQUEST = "gguf_imagegen.request"
"""Where the ASGI scope holds the request that it was made of."""
SESSIONS = 256
"""Of clients that speak MCP as it was before July 2026, at once."""
INSTRUCTIONS = (
    "Makes and changes pictures on this machine. A picture can take minutes: a tool that does not answer with"
    " pictures answers with a job id, and job_status waits for the rest. Show people the addresses of"
    " pictures."
)


def session_manager(most: int) -> StreamableHTTPSessionManager:
    """What serves /mcp as an ASGI application; bodies are bounded before, here by `most` bytes."""
    server: Server[Any] = Server(
        "gguf-imagegen",
        version=__version__,
        instructions=INSTRUCTIONS,
        get_tool_input_schema=lambda name: schema_of(TOOLS[name].takes) if name in TOOLS else None,
        on_list_tools=_list,
        on_call_tool=_call,
    )
    return StreamableHTTPSessionManager(server, max_request_body_size=most, max_sessions=SESSIONS)


def user(caller: str) -> AuthenticatedUser:
    """Whose session it is: others that know its id get no hold of it."""
    return AuthenticatedUser(AccessToken(token="", client_id=caller, scopes=[]))


async def _list(context: ServerRequestContext[Any], params: PaginatedRequestParams | None) -> ListToolsResult:
    return ListToolsResult(
        tools=[
            Tool(
                name=name,
                description=" ".join((tool.takes.__doc__ or "").split()),
                input_schema=schema_of(tool.takes),
                annotations=ToolAnnotations(
                    read_only_hint=tool.reads, destructive_hint=name == "cancel_job", open_world_hint=False
                ),
            )
            for name, tool in TOOLS.items()
        ]
    )


async def _call(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
    """Errors are results that say so, as the protocol wants: the model reads them and tries again."""

    async def tell(progress: float, words: str) -> None:
        await context.session.report_progress(progress, 100.0, words)

    if context.request is None or params.name not in TOOLS:
        return _failed(f"there is no tool {params.name[:60]!r}; known: {', '.join(TOOLS)}")
    request: web.Request = context.request.scope[REQUEST]
    try:
        return _result(await TOOLS[params.name](Call(request, tell), params.arguments or {}))
    except ImagegenError as exc:
        return _failed(f"{exc.code}: {exc}")


def _failed(words: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(text=words)], is_error=True)


def _result(shown: Shown) -> CallToolResult:
    content: list[ContentBlock] = [
        ImageContent(data=base64.b64encode(file).decode("ascii"), mime_type=kind)
        for file, kind in shown.pictures
    ]
    return CallToolResult(content=[*content, TextContent(text=shown.words)], structured_content=shown.data)
