"""Pictures by chat: the last user message is the prompt, its images are edited.

`message.images` has the pictures, as OpenRouter and what speaks its dialect (Open WebUI, LiteLLM) have them.
The content is a line of text, or a list of pictures where the request is vLLM-Omni's:
https://docs.vllm.ai/projects/vllm-omni/en/latest/serving/chat_completions_api/ and the examples
`text_to_image` and `image_to_image` of https://github.com/vllm-project/vllm-omni/tree/main/examples/online_serving.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web
from pydantic import BaseModel, Field

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.dialect import Dialect
from gguf_imagegen.api.dialects.chat_stream import ChatEncoder, chat_answer
from gguf_imagegen.api.openapi.contract import EVENTS, JSON, Param, picture_contract, with_contract
from gguf_imagegen.api.openapi.schemas import Schema, uploads
from gguf_imagegen.api.submit import answered, begin
from gguf_imagegen.planning.bounded_json import json_object
from gguf_imagegen.vocabulary.errors import InvalidRequest

OF_CHAT = {
    "messages", "extra_body", "response_format", "modalities", "audio", "prediction", "temperature", "top_p",
    "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "logprobs", "top_logprobs", "tools", "tool_choice", "functions",
    "parallel_tool_calls", "function_call", "reasoning_effort", "verbosity", "service_tier", "store",
    "metadata", "safety_identifier", "prompt_cache_key", "web_search_options",
}  # fmt: skip
"""Fields that steer the writing of text, or mean something else in chat; no picture depends on them."""

FRAMES = "With `stream: true`: `chat.completion.chunk` frames, a picture each, and `data: [DONE]`."

OF_VLLM_OMNI = ("num_inference_steps", "true_cfg_scale", "guidance_scale", "extra_body")
"""Fields by which a request is known that reads pictures from the content."""
CONTENT = Param(
    "content", "query", {"type": "string", "enum": ["text", "parts"]}, "what the message's content is"
)


class ChatRequest(BaseModel):
    """`messages`, and beside them (or in `extra_body`) the fields of an image request."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    extra_body: dict[str, Any] = {}


CONTRACT = picture_contract(
    answers.ChatAnswer,
    ChatRequest,
    media=(JSON, EVENTS),
    events=FRAMES,
    params=(CONTENT,),
    example={"messages": [{"role": "user", "content": "a lovely cat"}], "size": "64x64", "steps": 2},
)
"""That of routes that answer a chat."""


@with_contract(CONTRACT)
async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions: the answer's message has the pictures; `?content=parts`, as its content."""
    return await respond(request, await read_body(request))


async def respond(request: web.Request, asked: Mapping[str, Any]) -> web.StreamResponse:
    """The pictures that a chat's body asks for, as it wants them."""
    parts = wants_parts(request, asked)
    fields = chat_fields(asked)
    del asked
    work = await begin(request, fields, "edit" if fields["image"] else "generation")
    del fields  # with the pictures in them, while the job waits and runs
    encoder, body = partial(ChatEncoder, parts=parts), partial(chat_answer, parts=parts)
    return await answered(request, work, encoder, answers.ChatAnswer, body)


# -- the request --------------------------------------------------------------------------------------


def wants_parts(request: web.Request, body: Mapping[str, Any]) -> bool:
    """Whether the content is to be a list of pictures."""
    said = request.query.get("content", "")
    if said not in ("", "parts", "text"):
        raise InvalidRequest("content: must be 'parts' or 'text'", param="content")
    return said == "parts" or (not said and any(body.get(name) is not None for name in OF_VLLM_OMNI))


def chat_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an image request: those beside `messages` and in `extra_body`, prompt and images."""
    extra = json_object(body.get("extra_body") or {}, "extra_body")
    prompt, images = last_user_message(body.get("messages"))
    beside = {key: value for key, value in body.items() if key not in OF_CHAT}
    return {**beside, **extra, "prompt": prompt, "image": images}


def last_user_message(messages: object) -> tuple[str, list[str]]:
    """Text and images of the last message whose role is `user`; images as data URLs or base64."""
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        raise InvalidRequest("messages: must be a list of messages", param="messages")
    contents = [each.get("content") for each in messages if each.get("role") == "user"]
    if not contents:
        raise InvalidRequest("messages: no user message to use as the prompt", param="messages")
    parts = contents[-1] if isinstance(contents[-1], list) else [contents[-1]]
    said = [_part(part) for part in parts]
    prompt = " ".join(value.strip() for kind, value in said if kind == "text").strip()
    if not prompt:
        raise InvalidRequest("messages: the last user message has no text for a prompt", param="messages")
    return prompt, [value for kind, value in said if kind == "image"]


def _part(part: object) -> tuple[str, str]:
    """`("text" or "image", its value)` of a part: OpenAI's forms, and vLLM-Omni's `{"text"}`, `{"image"}`."""
    key, value = "text", part
    if isinstance(part, Mapping):
        key = next((key for key in ("text", "image_url", "image") if key in part), "")
        value = part.get(key)
        if key != "text" and isinstance(value, Mapping):
            value = value.get("url")
    if not isinstance(value, str):
        raise InvalidRequest(
            "messages: content must be text, or parts of the types 'text' and 'image_url'", param="messages"
        )
    return ("text" if key == "text" else "image"), value


def _describe(schemas: dict[str, Schema]) -> None:
    """Beside `messages`, the fields of an image request that chat has no field of its own for."""
    own, image = schemas["ChatRequest"]["properties"], schemas["ImageRequest"]["properties"]
    elsewhere = {*own, *OF_CHAT, *uploads(image), "prompt", "kwargs"}
    own |= {name: schema for name, schema in image.items() if name not in elsewhere}


DIALECT = Dialect(
    "vllm_omni", "vLLM-Omni", [web.post("/v1/chat/completions", completions)], describe=_describe
)
