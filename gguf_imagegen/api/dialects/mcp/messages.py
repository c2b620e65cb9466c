"""Messages of JSON-RPC as the API's description has them, and errors in its form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from gguf_imagegen.vocabulary.errors import ImagegenError

FRAMES = "JSON-RPC messages of the Model Context Protocol: progress, then the answer."
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "curl", "version": "8"},
}
INVALID = -32600
"""JSON-RPC's code for a request that is none."""


class JsonRpc(BaseModel):
    """A message of the Model Context Protocol: a request, a notification, or an answer."""

    model_config = ConfigDict(extra="allow")

    jsonrpc: Literal["2.0"] = "2.0"
    id: int | str | None = None
    method: str = ""


def refused(error: ImagegenError) -> Mapping[str, Any]:
    return refusal(str(error))


def refusal(words: str) -> Mapping[str, Any]:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": INVALID, "message": words}}
