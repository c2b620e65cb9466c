"""The answers of this server: each is built by its model, which the OpenAPI document describes.

A key that no model has cannot be sent (`gguf_imagegen.api.reply`).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, RootModel

from gguf_imagegen.api.error_answers import ErrorObject
from gguf_imagegen.api.job_answers import ImageItem
from gguf_imagegen.api.reply import Answer
from gguf_imagegen.vocabulary.engine import Decoder, StepCache

# -- callers and pictures -----------------------------------------------------------------------------


class Me(Answer):
    """Who the key belongs to; a bound that is null is the server's own."""

    object: Literal["caller"]
    name: str
    admin: bool
    bounds: dict[str, int | float | None]


class LogLine(Answer):
    """`created` is in seconds since 1970, `level` as `--log-level` has it."""

    id: int
    created: float
    level: str
    message: str


class LogList(Answer):
    """The latest lines of the server's log, the newest last."""

    object: Literal["list"]
    data: list[LogLine]


class KeptImage(Answer):
    id: str
    object: Literal["image"]
    created: int
    url: str
    thumbnail: str
    parameters: dict[str, Any]
    text: str


class ImageList(Answer):
    object: Literal["list"]
    data: list[KeptImage]
    has_more: bool
    total: int


class ImageInfo(Answer):
    """What is written in a picture: the text, and its parts by name; both empty if there is none."""

    object: Literal["image.info"]
    text: str
    parameters: dict[str, str]


class Addon(Answer):
    name: str


class LoraAddon(Addon):
    """`base_model` and `trigger_words` as the file's metadata has them, else empty."""

    base_model: str
    trigger_words: list[str]


class EmbeddingAddon(Addon):
    """A textual inversion, for models of this family; `fault` says why no model can use it."""

    family: str | None
    vectors: int | None
    fault: str | None


class ControlNetAddon(Addon):
    """A ControlNet, for models of this family; `fault` says why no model can use it."""

    family: str | None
    fault: str | None


class Addons(Answer):
    """Files that requests may name."""

    object: Literal["addons"]
    loras: list[LoraAddon]
    upscalers: list[Addon]
    embeddings: list[EmbeddingAddon]
    control_nets: list[ControlNetAddon]


class Deleted(Answer):
    id: str
    object: str
    deleted: Literal[True]


# -- models -------------------------------------------------------------------------------------------


class ModelMeta(Answer):
    aliases: list[str]
    description: str
    examples: list[str]
    state: Literal["absent", "pulling", "ready", "loading", "loaded", "unsupported"]
    error: ErrorObject | None
    tuned: dict[str, int | bool] | None
    engine: dict[str, str | float | bool]
    default: bool
    quants: list[dict[str, Any]]
    best: str
    memory: dict[str, Any] | None
    download_bytes: int | None
    pullable: bool
    pulling: list[str]
    pull_error: ErrorObject | None
    gated: bool
    links: list[str]
    unsupported: str | None
    size_on_disk: int | None
    family: str
    licence: str
    capabilities: list[str]
    edit_mode: str
    distilled_guidance: bool
    defaults: dict[str, Any]
    step_caches: list[StepCache]
    decoders: list[Decoder]
    limits: dict[str, Any]
    quality: dict[str, Any]
    samplers: list[str]
    schedules: list[str]
    variations: bool
    previews: list[str]


class ModelObject(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    model_type: str
    meta: ModelMeta


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelObject]


class MemoryFreed(Answer):
    """`unloaded` are the models that were in memory."""

    object: Literal["models.yield"]
    unloaded: list[str]


class ModelDeleted(Answer):
    """`deleted`: files are gone. `removed` and `kept` (others use them) are names, `freed` is bytes."""

    id: str
    object: Literal["model"]
    deleted: bool
    removed: list[str]
    kept: list[str]
    freed: int


class Errand(Answer):
    """How far long work on a model's files is; `done` and `total` are bytes."""

    model: str
    status: Literal["waiting", "running", "succeeded", "failed", "cancelled"]
    done: int
    total: int
    files: list[dict[str, Any]]
    error: ErrorObject | None
    detail: str = ""


class PullObject(Errand):
    object: Literal["model.pull"]


class ConversionObject(Errand):
    """`model` is the name of the result.

    `psnr` compares a small picture of it with the source's, in dB, 100 for equal ones; `not_compared` says
    why there is none. Both are null until then.
    """

    object: Literal["model.conversion"]
    psnr: float | None
    not_compared: str | None


# -- the server ---------------------------------------------------------------------------------------


class Alive(Answer):
    status: Literal["alive"]


class LaneState(Answer):
    """A device, what it does, the model it loads or has used last, and the job it works on."""

    name: str
    status: Literal["idle", "loading", "running", "paused"]
    model: str | None
    backend: str | None
    kernels: str | None
    pause: int | None
    job: str | None


class ClusterNode(Answer):
    """A machine that offers devices; `models` are those in memory, `why` is why it is refused.

    `cpu` is the model of its processor.
    """

    name: str
    status: Literal["ready", "starting", "draining", "drained", "refused"]
    why: str | None
    version: str | None
    devices: list[str]
    cpu: str | None
    models: list[str]


class LostLane(Answer):
    lane: str
    why: str
    at: int


class ClusterState(Answer):
    """`away`: the head does not answer, and lanes go on. `lost` are the last of `lanes_lost`.

    `late_events` came from attempts that were over, and were refused.
    """

    status: Literal["joining", "joined", "away", "failed"]
    why: str | None
    nodes: list[ClusterNode]
    lost: list[LostLane]
    lanes_lost: int
    late_events: int


class EngineBuild(Answer):
    """Which of the builds for several levels of CPU is used, and why that one."""

    level: str
    why: str


class Health(Answer):
    status: Literal["ok", "loading", "paused", "error", "no_lanes", "shutting_down"]
    ready: bool
    model: str
    loaded: bool
    models: list[str]
    loading: dict[str, int] | None
    backend: str | None
    kernels: str | None
    build: EngineBuild | None
    error: ErrorObject | None
    pause: int | None
    queue: int
    running: str | None
    lanes: list[LaneState]
    cluster: ClusterState | None
    version: str


# -- chat, Xinference, OpenVINO Model Server ----------------------------------------------------------


class ChatAnswer(Answer):
    """The message's `images` are `image_url` parts with data URLs; its content is text, or the same parts."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, float]
    data: list[ImageItem]
    warnings: list[str]


class RequestProgress(Answer):
    progress: float = Field(ge=0, le=1)


# -- all ----------------------------------------------------------------------------------------------


class ServerSentEvent(Answer):
    """One event of a stream; `data` is JSON, or `[DONE]` at the end."""

    data: str
    event: str = ""
    id: str = ""


class AnyObject(RootModel[dict[str, Any]]):
    """An object."""


class ObjectList(RootModel[list[dict[str, Any]]]):
    """A list of objects, perhaps an empty one."""


class Nothing(RootModel[None]):
    """null"""
