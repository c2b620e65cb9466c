"""GPUStack: OpenAI's routes under /v1-openai, and errors whose `code` is the HTTP status.

https://github.com/gpustack/gpustack/blob/a655ad28/docs/user-guide/image-generation-apis.md shows them:
`{"code": 400, "message": "Invalid image", "type": "invalid_request_error"}`.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gguf_imagegen.api import models
from gguf_imagegen.api.dialect import Dialect, ErrorForm
from gguf_imagegen.api.dialects import openai
from gguf_imagegen.api.error_answers import NumericErrorAnswer
from gguf_imagegen.vocabulary.errors import ImagegenError


def error_body(error: ImagegenError) -> dict[str, Any]:
    """Our own word for the error is `reason`."""
    named = {"message": error.message, "type": error.type, "param": error.param}
    return {**error.body(), "error": {**named, "code": error.status, "reason": error.code}}


DIALECT = Dialect(
    "gpustack",
    "GPUStack",
    [
        web.post("/v1-openai/images/generations", openai.generations),
        web.post("/v1-openai/images/edits", openai.edits),
        web.post("/v1-openai/image/generate", openai.generations),
        web.post("/v1-openai/image/edit", openai.edits),
        web.get("/v1-openai/models", models.list_models),
        web.get("/v1-openai/models/{id}", models.get_model),
        web.get("/v1-openai/models/{org}/{name}", models.get_model),
    ],
    roots=("/v1-openai/",),
    errors=ErrorForm(NumericErrorAnswer, error_body),
)
