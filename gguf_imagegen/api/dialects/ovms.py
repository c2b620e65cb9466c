"""OpenVINO Model Server: OpenAI's routes under /v3, and its list of models with their states.

https://github.com/openvinotoolkit/model_server/blob/main/demos/image_generation/README.md
"""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import RootModel

from gguf_imagegen.api import models
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects import openai
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.catalog.entry import Entry


class ModelStates(RootModel[dict[str, dict[str, Any]]]):
    """`model_version_status` of each model by its id."""


@endpoint(ModelStates)
async def config(request: web.Request) -> web.Response:
    """GET /v1/config and /v3/config: which models can be asked for, in OVMS's words.

    A model is AVAILABLE when its files are on disk (it loads on demand), LOADING while it loads. Of the rest
    of the catalog only the default model is listed, as END: a client that waits for every model must not wait
    for those that nobody downloaded.
    """
    service = request.app[SERVICE]
    states = {service.name_of(entry): _state(request.app, entry) for entry in service.catalog.entries}
    listed = {name for name, state in states.items() if state != "END"} | {service.served_name}
    return reply(ModelStates, {name: _status(state) for name, state in states.items() if name in listed})


def _state(app: web.Application, entry: Entry) -> str:
    if app[SERVICE].pool.loads(entry):
        return "LOADING"
    return "AVAILABLE" if app[SERVICE].catalog.within_reach(entry) and not entry.unsupported else "END"


def _status(state: str) -> dict[str, Any]:
    there = state != "END"
    status = {
        "error_code": "OK" if there else "NOT_FOUND",
        "error_message": "OK" if there else "the model's files are not on disk",
    }
    return {"model_version_status": [{"version": "1", "state": state, "status": status}]}


DIALECT = Dialect(
    "ovms",
    "OpenVINO Model Server",
    [
        web.post("/v3/images/generations", openai.generations),
        web.post("/v3/images/edits", openai.edits),
        web.post("/v3/images/variations", openai.variations),
        web.get("/v3/models", models.list_models),
        web.get("/v3/models/{id}", models.get_model),
        web.get("/v3/models/{org}/{name}", models.get_model),
        web.get("/v1/config", config),
        web.get("/v3/config", config),
    ],
    roots=("/v3/",),
)
