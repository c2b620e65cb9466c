"""OpenAI's Responses API with its `image_generation` tool, and no language model behind it.

The prompt is the last text of the user; pictures beside it, and those of `previous_response_id`, are edited.
Shapes: https://platform.openai.com/docs/api-reference/responses, `openai.types.responses` of openai-python.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from pydantic import BaseModel, Field

from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import caller_of
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects.responses_stream import ResponseAnswer, ResponsesEncoder, response_object
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import EVENTS, JSON, PICTURE, picture_contract, with_contract
from gguf_imagegen.api.submit import answered, begin, pictures
from gguf_imagegen.vocabulary.errors import InvalidRequest, JobNotFound, UnsupportedOperation

TOOL = "image_generation"
OF_RESPONSES = {
    "input", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "previous_response_id", "model",
    "instructions", "include", "store", "metadata", "temperature", "top_p", "top_logprobs", "truncation",
    "max_output_tokens", "reasoning", "text", "prompt_cache_key", "prompt_cache_retention", "service_tier",
    "safety_identifier", "background", "conversation", "context_management", "stream_options",
}  # fmt: skip
"""Fields that steer the writing of text, or mean something else here; no picture depends on them."""
FRAMES = (
    "With `stream: true`: the events from `response.created` to `response.completed`"
    " or `response.failed`; partial images as `response.image_generation_call.partial_image`."
)
OF_THE_TOOL = {"type", "action", "input_image_mask", "model"}


class ResponsesRequest(BaseModel):
    """`tools` has one of the type `image_generation`, with the fields of an image request in it or beside."""

    input: str | list[dict[str, Any]]
    tools: list[dict[str, Any]] = Field(min_length=1)
    previous_response_id: str | None = None


@with_contract(
    picture_contract(
        ResponseAnswer,
        ResponsesRequest,
        errors=(*PICTURE, JobNotFound),
        media=(JSON, EVENTS),
        events=FRAMES,
        example={"input": "a lovely cat", "tools": [{"type": "image_generation", "size": "64x64"}]},
    )
)
async def create(request: web.Request) -> web.StreamResponse:
    """POST /v1/responses: pictures as `image_generation_call` items."""
    body = await read_body(request)
    fields, notes = await _fields(request, body)
    del body
    work = await begin(request, fields, "edit" if fields["image"] else "generation", notes=notes)
    del fields  # with the pictures in them, while the job waits and runs
    return await answered(request, work, ResponsesEncoder, ResponseAnswer, response_object)


async def _fields(request: web.Request, body: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of an image request, and warnings."""
    tool = _tool(body.get("tools"))
    prompt, images = last_user_input(body.get("input"))
    if not images and tool.get("action") != "generate" and body.get("previous_response_id"):
        images = await _made_before(request, str(body["previous_response_id"]))
    fields = {key: value for key, value in body.items() if key not in OF_RESPONSES}
    fields |= {key: value for key, value in tool.items() if key not in OF_THE_TOOL}
    mask = tool.get("input_image_mask")
    if isinstance(mask, Mapping) and mask.get("image_url"):
        fields["mask"] = mask["image_url"]
    model, notes = _model(request, (tool.get("model"), body.get("model")))
    return {**fields, "model": model, "prompt": prompt, "image": images}, notes


def _tool(tools: object) -> Mapping[str, Any]:
    """The tool that draws; without it text is wanted, which nobody here writes."""
    for tool in tools if isinstance(tools, Sequence) else ():
        if isinstance(tool, Mapping) and tool.get("type") == TOOL:
            return tool
    raise UnsupportedOperation(
        'tools: this server draws and writes no text; send "tools": [{"type": "image_generation"}]',
        param="tools",
    )


def _model(request: web.Request, names: Sequence[object]) -> tuple[str | None, list[str]]:
    """The first name that is a model of ours: the request's own is a language model's."""
    service, said = request.app[SERVICE], [str(name) for name in names if name]
    known = next((name for name in said if service.catalog.knows(name)), None)
    if known is not None or not said:
        return known, []
    return None, [f"model: {said[0][:60]!r} is not here; {service.name_of(service.default)} drew"]


def last_user_input(given: object) -> tuple[str, list[Any]]:
    """The last text of the user and the pictures beside it, as data URLs."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items = [item for item in given if isinstance(item, Mapping)] if isinstance(given, list) else []
    messages = [item for item in items if item.get("role") == "user"]
    contents = messages[-1].get("content") if messages else None
    parts = contents if isinstance(contents, list) else [{"type": "input_text", "text": contents}]
    parts = [part for part in parts if isinstance(part, Mapping)]
    prompt = " ".join(str(part["text"]).strip() for part in parts if part.get("text")).strip()
    if not prompt:
        raise InvalidRequest("input: no user text to use as the prompt", param="input")
    images = [part["image_url"] for part in parts if part.get("image_url")]
    drawn = [item["result"] for item in items if item.get("type") == f"{TOOL}_call" and item.get("result")]
    return prompt, images or drawn[-1:]


async def _made_before(request: web.Request, response_id: str) -> list[bytes]:
    """The pictures of an earlier response, to be edited."""
    job_id = f"job_{response_id.removeprefix('resp_')}"
    job = request.app[SERVICE].scheduler.get(job_id, caller_of(request))
    return await asyncio.to_thread(pictures, request.app, job)


DIALECT = Dialect("responses", "OpenAI", [web.post("/v1/responses", create)])
