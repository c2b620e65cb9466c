"""The shapes of answers, for the OpenAPI document: models that describe and never build.

The handlers write plain dicts; the conformance tests (tests/api/test_schemathesis.py) compare every answer
with these. A model names what clients may rely on; further keys may stand beside them.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel

from gguf_imagegen.vocabulary.engine import Decoder, StepCache

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """OpenAI's error object, and the `detail` that FastAPI-like clients read."""

    error: ErrorObject
    detail: str


class NumericErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: int
    reason: str


class NumericErrorAnswer(BaseModel):
    """GPUStack's: `code` is the HTTP status, `reason` our own word."""

    error: NumericErrorObject
    detail: str


class NativeErrorAnswer(BaseModel):
    """sd.cpp's: `error` is text."""

    error: str
    message: str
    type: str
    param: str | None
    code: str
    detail: str


# -- pictures and jobs --------------------------------------------------------------------------------


class ImageItem(BaseModel):
    """One picture and how it was made; `b64_json` and `url` as `response_format` wants them, else null."""

    b64_json: str | None = Field(None, json_schema_extra={"contentEncoding": "base64"})
    url: str | None = None
    revised_prompt: str | None
    index: int
    seed: int
    sampler: str
    schedule: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    finish_reason: str


class Usage(BaseModel):
    """Token counts are 0; the times are measured."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    time_to_process_ms: float
    time_per_generation_ms: float
    generation_per_second: float


class ImagesAnswer(BaseModel):
    created: int
    model: str
    size: str
    quality: str
    background: str
    output_format: Literal["png", "jpeg", "webp"]
    id: str
    data: list[ImageItem]
    usage: Usage
    warnings: list[str]


class JobParameters(BaseModel):
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    sampler: str
    schedule: str
    cfg_scale: float
    guidance: float | None
    width: int
    height: int


class JobObject(BaseModel):
    """State, progress (0 to 100) and result of a job."""

    id: str
    object: Literal["job"]
    caller: str
    operation: Literal["generation", "edit", "variation", "upscale"]
    status: JobStatus
    model: str
    created: int
    started: float | None
    ended: float | None
    lane: str | None
    priority: int
    position: int | None
    eta: float | None
    progress: float = Field(ge=0, le=100)
    step: int
    steps: int
    phase: str | None
    n: int
    parameters: JobParameters
    settings: dict[str, str]
    data: list[ImageItem]
    usage: Usage
    warnings: list[str]
    error: ErrorObject | None
    events: str


class Me(BaseModel):
    """Who the key belongs to; a bound that is null is the server's own."""

    object: Literal["caller"]
    name: str
    admin: bool
    bounds: dict[str, int | float | None]


class JobList(BaseModel):
    object: Literal["list"]
    data: list[JobObject]
    has_more: bool


class KeptImage(BaseModel):
    id: str
    object: Literal["image"]
    created: int
    url: str
    thumbnail: str
    parameters: dict[str, Any]
    text: str


class ImageList(BaseModel):
    object: Literal["list"]
    data: list[KeptImage]
    has_more: bool


class ImageInfo(BaseModel):
    """What is written in a picture: the text, and its parts by name; both empty if there is none."""

    object: Literal["image.info"]
    text: str
    parameters: dict[str, str]


class Addon(BaseModel):
    name: str


class LoraAddon(Addon):
    """`base_model` and `trigger_words` as the file's metadata has them, else empty."""

    base_model: str
    trigger_words: list[str]


class Addons(BaseModel):
    """Files that requests may name."""

    object: Literal["addons"]
    loras: list[LoraAddon]
    upscalers: list[Addon]


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True]


# -- models -------------------------------------------------------------------------------------------


class ModelMeta(BaseModel):
    aliases: list[str]
    description: str
    examples: list[str]
    state: Literal["absent", "pulling", "ready", "loading", "loaded", "unsupported"]
    error: ErrorObject | None
    tuned: dict[str, int | bool] | None
    default: bool
    quants: list[dict[str, Any]]
    best: str
    memory: dict[str, Any] | None
    download_bytes: int | None
    size_on_disk: int | None
    family: str
    licence: str
    capabilities: list[str]
    edit_mode: str
    defaults: dict[str, Any]
    step_caches: list[StepCache]
    decoders: list[Decoder]
    limits: dict[str, Any]
    quality: dict[str, Any]
    samplers: list[str]
    schedules: list[str]
    previews: list[str]


class ModelObject(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    meta: ModelMeta


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelObject]


class ModelDeleted(BaseModel):
    """`deleted`: files are gone. `removed` and `kept` (others use them) are names, `freed` is bytes."""

    id: str
    object: Literal["model"]
    deleted: bool
    removed: list[str]
    kept: list[str]
    freed: int


class PullObject(BaseModel):
    """How far a pull is; `done` and `total` are bytes."""

    object: Literal["model.pull"]
    model: str
    status: Literal["waiting", "running", "succeeded", "failed", "cancelled"]
    done: int
    total: int
    files: list[dict[str, Any]]
    error: ErrorObject | None


# -- the server ---------------------------------------------------------------------------------------


class Alive(BaseModel):
    status: Literal["alive"]


class LaneState(BaseModel):
    """A device, what it does, the model it loads or has used last, and the job it works on."""

    name: str
    status: Literal["idle", "loading", "running", "paused"]
    model: str | None
    backend: str | None
    pause: int | None
    job: str | None


class Health(BaseModel):
    status: Literal["ok", "loading", "paused", "error", "shutting_down"]
    ready: bool
    model: str
    loaded: bool
    models: list[str]
    loading: dict[str, int] | None
    backend: str | None
    error: ErrorObject | None
    pause: int | None
    queue: int
    running: str | None
    lanes: list[LaneState]
    version: str


# -- sd.cpp's server ----------------------------------------------------------------------------------


class NativeCapabilities(BaseModel):
    model: dict[str, str]
    current_mode: str
    supported_modes: list[str]
    defaults: dict[str, Any]
    limits: dict[str, int]
    samplers: list[str]
    schedulers: list[str]
    output_formats: list[str]
    features: dict[str, bool]
    loras: list[dict[str, str]]
    upscalers: list[dict[str, str]]


class NativeSubmitted(BaseModel):
    id: str
    kind: Literal["img_gen"]
    status: Literal["queued", "generating", "completed", "failed", "cancelled"]
    created: int
    poll_url: str
    warnings: list[str]


class NativeJob(BaseModel):
    """`result` has the pictures of a completed job; `progress` is 0 to 1."""

    id: str
    kind: Literal["img_gen"]
    status: Literal["queued", "generating", "completed", "failed", "cancelled"]
    created: int
    started: int | None
    completed: int | None
    queue_position: int
    result: dict[str, Any] | None
    error: dict[str, str] | None
    progress: float = Field(ge=0, le=1)
    step: int
    steps: int
    eta: float | None
    model: str
    warnings: list[str]


# -- chat, Xinference, OpenVINO Model Server ----------------------------------------------------------


class ChatAnswer(BaseModel):
    """The message's `images` are `image_url` parts with data URLs; its content is text, or the same parts."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, float]
    data: list[ImageItem]
    warnings: list[str]


class ResponseAnswer(BaseModel):
    """The output's items are of the type `image_generation_call`, their `result` is base64."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    usage: dict[str, Any]
    warnings: list[str]


class LaunchAnswer(BaseModel):
    """`model_uid` is the name by which requests ask for it."""

    model_uid: str


class RequestProgress(BaseModel):
    progress: float = Field(ge=0, le=1)


class AbortAnswer(BaseModel):
    msg: Literal["DONE", "NO_OP", "NOT_FOUND"]


class ModelStates(RootModel[dict[str, dict[str, Any]]]):
    """`model_version_status` of each model by its id."""


# -- all ----------------------------------------------------------------------------------------------


class ServerSentEvent(BaseModel):
    """One event of a stream; `data` is JSON, or `[DONE]` at the end."""

    data: str
    event: str = ""
    id: str = ""


class AnyObject(RootModel[dict[str, Any]]):
    """An object."""


class ObjectList(RootModel[list[dict[str, Any]]]):
    """A list of objects, perhaps an empty one."""


class JsonRpc(BaseModel):
    """A message of the Model Context Protocol: a request, a notification, or an answer."""

    model_config = ConfigDict(extra="allow")

    jsonrpc: Literal["2.0"] = "2.0"
    id: int | str | None = None
    method: str = ""


class Nothing(RootModel[None]):
    """null"""
