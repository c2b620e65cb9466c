"""What each handler takes and gives, said once: the OpenAPI document (`document`) adds paths and words.

Statuses come from the error classes (`vocabulary.errors`), bodies from pydantic models; no path is known
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field

from gguf_imagegen.api import answers, gallery, jobs, models, pull, system, web_page
from gguf_imagegen.api.dialects import azure, chat, openai, responses, xinference
from gguf_imagegen.api.dialects.a1111 import answers as a1111_answers
from gguf_imagegen.api.dialects.a1111 import extras, lists, pictures
from gguf_imagegen.api.dialects.a1111 import progress as a1111_progress
from gguf_imagegen.api.dialects.a1111.request import A1111Request
from gguf_imagegen.api.dialects.sdcpp import routes as native
from gguf_imagegen.api.openapi import routes
from gguf_imagegen.api.openapi.contract import EVENTS, JSON, Contract, Param
from gguf_imagegen.api.paging import MOST
from gguf_imagegen.api.streams import all_jobs
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.vocabulary import errors


class ChatRequest(BaseModel):
    """`messages`, and beside them (or in `extra_body`) the fields of an image request."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    extra_body: dict[str, Any] = {}


class ResponsesRequest(BaseModel):
    """`tools` has one of the type `image_generation`, with the fields of an image request in it or beside."""

    input: str | list[dict[str, Any]]
    tools: list[dict[str, Any]] = Field(min_length=1)
    previous_response_id: str | None = None


class LaunchRequest(BaseModel):
    """Xinference's other fields (replicas, GPUs, engines) are ignored: the server decides."""

    model_name: str
    quantization: str | None = None


class OptionsRequest(BaseModel):
    """Other options are ignored."""

    sd_model_checkpoint: str | None = None


class PngInfoRequest(BaseModel):
    image: str = Field(description="base64 or data URL")


class NativeRequest(BaseModel):
    """sd.cpp's native schema; 0, -1 and "" leave a field to the model."""


READING = (errors.InvalidRequest, errors.PayloadTooLarge, errors.ContentTypeUnsupported)
ADMIN = (errors.Forbidden,)
MODEL = (errors.ModelNotFound, errors.ModelNotDownloaded)
PICTURE = (
    *READING, *MODEL, errors.InvalidSize, errors.InvalidImage, errors.UnknownSampler, errors.PromptTooLong,
    errors.UnsupportedOperation, errors.MissingComponent, errors.InvalidModelFile, errors.QueueFull,
    errors.Cancelled, errors.GenerationFailed, errors.WorkerCrashed, errors.ModelLoadFailed,
    errors.InsufficientMemory, errors.ShuttingDown, errors.EnginePaused,
)  # fmt: skip
"""What can go wrong from the body of a request to its pictures."""

PREFER = Param("Prefer", "header", {"type": "string", "enum": ["respond-async"]}, "answer 202 and a job")
IDEMPOTENCY = Param(
    "Idempotency-Key", "header", {"type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$"},
    "requests with one key and one body share one job",
)  # fmt: skip
CONTENT = Param(
    "content", "query", {"type": "string", "enum": ["text", "parts"]}, "what the message's content is"
)
ASYNC = {202: answers.JobObject}
FRAMES = (
    "With `stream: true`: `data:` lines of JSON, comments as heartbeats, `data: [DONE]` at the end, `event:"
    " error` with the error object on failure. Dialects (`stream_options.dialect`): llama-box's `image.chunk`"
    " frame per step; OpenAI's `image_generation.partial_image` and `.completed` (`image_edit.` for edits);"
    " both."
)
CHAT_FRAMES = "With `stream: true`: `chat.completion.chunk` frames, a picture each, and `data: [DONE]`."
RESPONSE_FRAMES = (
    "With `stream: true`: the events of OpenAI's Responses API from `response.created` to `response.completed`"
    " or `response.failed`; partial images as `response.image_generation_call.partial_image`."
)
JOB_FRAMES = "One frame for each event of the job, its number as `id:`, and `data: [DONE]` at the end."
PULL_FRAMES = "Events `progress`, `verifying`, then `done` or `error`; comments as heartbeats."
FILES_OF_PICTURES = ("image/png", "image/jpeg", "image/webp", "application/zip")
"""With `response_format: "file"`."""
CAT = {"prompt": "a lovely cat", "size": "64x64", "steps": 2}
PICTURE_TEXT = "data:image/png;base64,..."


def _images(*required: str, **example: Any) -> Contract:
    return Contract(
        answer=answers.ImagesAnswer,
        request=ImageRequest,
        required=required,
        form=True,
        errors=PICTURE,
        also=ASYNC,
        media=(JSON, EVENTS, *FILES_OF_PICTURES),
        events=FRAMES,
        params=(PREFER, IDEMPOTENCY),
        example=example,
    )


def _a1111_pictures(*required: str, **example: Any) -> Contract:
    return Contract(
        a1111_answers.A1111Answer,
        A1111Request,
        required=required,
        errors=PICTURE,
        also=ASYNC,
        params=(PREFER, IDEMPOTENCY),
        example=example,
    )


def _chat() -> Contract:
    return Contract(
        answers.ChatAnswer,
        ChatRequest,
        errors=PICTURE,
        also=ASYNC,
        media=(JSON, EVENTS),
        events=CHAT_FRAMES,
        params=(PREFER, IDEMPOTENCY, CONTENT),
        example={"messages": [{"role": "user", "content": "a lovely cat"}], "size": "64x64", "steps": 2},
    )


def _list() -> Contract:
    return Contract(answers.ObjectList)


ALL = Param("all", "query", {"type": "boolean"}, "the whole catalog, not only what is on disk")
SKIP_IMAGE = Param("skip_current_image", "query", {"type": "boolean"}, "leave the preview out")
ID_TASK = Param("id_task", "query", {"type": "string"}, "the job of this `force_task_id`")
FILES = Param(
    "files", "query", {"type": "boolean"}, "delete the files instead; 409 while the model is in use"
)
LAST_EVENT = Param(
    "Last-Event-ID", "header", {"type": "integer", "minimum": -1, "maximum": 99_999_999},
    "go on after this event",
)  # fmt: skip
LAST_EVENT_QUERY = Param("last_event_id", "query", LAST_EVENT.schema, "the same, for browsers")
EXPIRED = (native.JobExpired, errors.JobNotFound)

LIMIT = Param("limit", "query", {"type": "integer", "minimum": 1, "maximum": MOST}, "items in one answer")
BEFORE_IMAGE = Param("before", "query", {"type": "string"}, "go on after the image of this name")
BEFORE_JOB = Param("before", "query", {"type": "string"}, "go on after the job of this id")
ALL_FRAMES = "JSON frames of every job, without an end; comments as heartbeats."

CONTRACTS: Mapping[Any, Contract] = {
    web_page.page: Contract(None, also={304: None}, media=("text/html",)),
    web_page.asset: Contract(
        None,
        errors=(errors.NotFound,),
        also={304: None},
        media=tuple(sorted({*web_page.TYPES.values()})),
    ),
    routes.openapi_json: Contract(),
    routes.docs: Contract(None, media=("text/html",)),
    gallery.list_images: Contract(
        answers.ImageList, errors=(errors.InvalidRequest,), params=(LIMIT, BEFORE_IMAGE)
    ),
    gallery.delete_image: Contract(answers.Deleted, errors=(errors.NotFound,)),
    all_jobs.events: Contract(None, media=(EVENTS,), events=ALL_FRAMES),
    openai.generations: _images("prompt", **CAT),
    azure.generations: _images("prompt", **CAT),
    azure.edits: _images("prompt", "image", prompt="a dog", image=PICTURE_TEXT, strength=0.5),
    azure.completions: _chat(),
    openai.edits: _images("prompt", "image", prompt="a dog", image=PICTURE_TEXT, strength=0.5),
    openai.variations: _images("image", image=PICTURE_TEXT, n=2),
    openai.files: Contract(None, errors=(errors.NotFound,), media=FILES_OF_PICTURES[:3]),
    models.list_models: Contract(answers.ModelList, params=(ALL,)),
    models.get_model: Contract(answers.ModelObject, errors=(errors.ModelNotFound,)),
    models.load_model: Contract(
        answers.ModelObject, errors=(*MODEL, errors.UnsupportedOperation, *ADMIN), status=202
    ),
    models.unload_model: Contract(answers.ModelObject, errors=(errors.ModelNotFound, *ADMIN), status=202),
    pull.pull_model: Contract(
        None,
        pull.PullRequest,
        errors=(
            *READING,
            *ADMIN,
            errors.ModelNotFound,
            errors.UnsupportedOperation,
            errors.InsufficientMemory,
        ),
        also={202: answers.PullObject},
        media=(EVENTS,),
        events=PULL_FRAMES,
        example={"model": "sd-turbo", "stream": False},
    ),
    pull.get_pull: Contract(answers.PullObject, errors=(errors.ModelNotFound, errors.PullNotFound)),
    pull.cancel_pull: Contract(
        answers.PullObject, errors=(errors.ModelNotFound, errors.PullNotFound, *ADMIN)
    ),
    pull.remove_model: Contract(
        answers.ModelDeleted,
        errors=(errors.InvalidRequest, *MODEL, errors.ModelBusy, *ADMIN),
        params=(FILES,),
    ),
    jobs.list_jobs: Contract(
        answers.JobList, errors=(errors.InvalidRequest, errors.JobNotFound), params=(LIMIT, BEFORE_JOB)
    ),
    jobs.get_job: Contract(answers.JobObject, errors=(errors.JobNotFound,)),
    jobs.cancel_job: Contract(answers.JobObject, errors=(errors.JobNotFound,)),
    jobs.job_events: Contract(
        None,
        errors=(errors.JobNotFound, errors.InvalidRequest),
        media=(EVENTS,),
        events=JOB_FRAMES,
        params=(LAST_EVENT, LAST_EVENT_QUERY),
    ),
    system.health: Contract(answers.Health, also={503: answers.Health}),
    system.livez: Contract(answers.Alive),
    system.me: Contract(answers.Me),
    system.metrics: Contract(None, errors=ADMIN, media=("text/plain",)),
    # sd.cpp's server
    native.capabilities: Contract(answers.NativeCapabilities, errors=(errors.ModelNotFound,)),
    native.img_gen: Contract(
        answers.NativeSubmitted,
        NativeRequest,
        required=("prompt",),
        errors=PICTURE,
        status=202,
        params=(IDEMPOTENCY,),
        example={"prompt": "a lovely cat", "width": 64, "height": 64, "sample_params": {"sample_steps": 2}},
    ),
    native.vid_gen: Contract(request=NativeRequest, errors=(errors.UnsupportedOperation,), status=0),
    native.get_job: Contract(answers.NativeJob, errors=EXPIRED),
    native.cancel_job: Contract(answers.NativeJob, errors=EXPIRED),
    # vLLM-Omni
    chat.completions: _chat(),
    responses.create: Contract(
        answers.ResponseAnswer,
        ResponsesRequest,
        errors=(*PICTURE, errors.JobNotFound),
        also=ASYNC,
        media=(JSON, EVENTS),
        events=RESPONSE_FRAMES,
        params=(PREFER, IDEMPOTENCY),
        example={"input": "a lovely cat", "tools": [{"type": "image_generation", "size": "64x64"}]},
    ),
    # OpenVINO Model Server, Xinference
    xinference.config: Contract(answers.ModelStates),
    xinference.inpainting: _images(
        "prompt", "image", "mask", prompt="a hat", image=PICTURE_TEXT, mask_image=PICTURE_TEXT
    ),
    xinference.launch: Contract(
        answers.LaunchAnswer,
        LaunchRequest,
        required=("model_name",),
        errors=(
            *READING,
            *MODEL,
            *ADMIN,
            errors.UnsupportedOperation,
            errors.ModelLoadFailed,
            errors.WorkerCrashed,
            errors.InsufficientMemory,
            errors.ServerBusy,
        ),
        params=(Param("wait_ready", "query", {"type": "boolean"}, "answer when it is loaded"),),
        example={"model_name": "sd-turbo", "model_type": "image"},
    ),
    xinference.launch_progress: Contract(answers.RequestProgress, errors=(errors.ModelNotFound,)),
    xinference.registrations: Contract(
        answers.ObjectList, params=(Param("detailed", "query", {"type": "boolean"}, "more of each"),)
    ),
    xinference.registration: Contract(errors=(errors.ModelNotFound,)),
    xinference.ocr: Contract(errors=(errors.UnsupportedOperation,), status=0),
    xinference.progress: Contract(answers.RequestProgress, errors=(errors.InvalidRequest,)),
    xinference.abort: Contract(answers.AbortAnswer, errors=(errors.ModelNotFound,)),
    # AUTOMATIC1111
    pictures.txt2img: _a1111_pictures("prompt", prompt="a lovely cat", width=64, height=64, steps=2),
    pictures.img2img: _a1111_pictures(
        "init_images", prompt="a dog", init_images=[PICTURE_TEXT], denoising_strength=0.5
    ),
    a1111_progress.progress: Contract(a1111_answers.A1111Progress, params=(SKIP_IMAGE, ID_TASK)),
    a1111_progress.internal_progress: Contract(
        a1111_answers.InternalProgress,
        a1111_progress.ProgressRequest,
        required=("id_task",),
        errors=READING,
        example={"id_task": "task(abc)"},
    ),
    a1111_progress.interrupt: Contract(),
    a1111_progress.skip: Contract(answers.Nothing),
    lists.sd_models: Contract(answers.ObjectList, params=(ALL,)),
    lists.get_options: Contract(),
    lists.set_options: Contract(answers.Nothing, OptionsRequest, errors=(*READING, *MODEL, *ADMIN)),
    lists.unload_checkpoint: Contract(errors=ADMIN),
    lists.reload_checkpoint: Contract(errors=(*MODEL, *ADMIN)),
    lists.samplers: _list(),
    lists.schedulers: _list(),
    lists.loras: _list(),
    lists.upscalers: _list(),
    lists.latent_upscale_modes: _list(),
    lists.cmd_flags: Contract(),
    lists.memory: Contract(),
    lists.scripts: Contract(),
    lists.embeddings: Contract(),
    lists.nothing: _list(),
    lists.done: Contract(answers.Nothing),
    extras.extra_single_image: Contract(
        a1111_answers.ExtrasAnswer,
        extras.ExtrasRequest,
        required=("image",),
        errors=PICTURE,
        example={"image": PICTURE_TEXT, "upscaler_1": "Lanczos", "upscaling_resize": 2},
    ),
    extras.extra_batch_images: Contract(
        a1111_answers.ExtrasBatchAnswer,
        extras.ExtrasRequest,
        required=("imageList",),
        errors=PICTURE,
        example={"imageList": [{"data": PICTURE_TEXT}], "upscaler_1": "Lanczos"},
    ),
    extras.png_info: Contract(a1111_answers.PngInfo, PngInfoRequest, errors=(*READING, errors.InvalidImage)),
    extras.interrogate: Contract(errors=(errors.UnsupportedOperation,), status=0),
}
"""By handler; one that only refuses has the status 0."""


def contract_of(handler: Any) -> Contract | None:
    """The contract of a handler or of what it wraps."""
    while handler is not None:
        if handler in CONTRACTS:
            return CONTRACTS[handler]
        handler = getattr(handler, "__wrapped__", None)
    return None
