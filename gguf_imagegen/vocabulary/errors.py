"""Every error a client can see: one class each, with its HTTP status, code and retry advice.

    ImagegenError (500)
    ├── InvalidRequest (400)
    │   ├── InvalidSize, InvalidImage, UnknownSampler, PromptTooLong
    │   ├── UnsupportedOperation, MissingComponent, MissingAddon, InvalidModelFile
    │   └── ContentTypeUnsupported (415)
    ├── Unauthorized (401), Forbidden (403), MethodNotAllowed (405)
    ├── NotFound (404)
    │   └── ModelNotFound, ModelNotDownloaded, JobNotFound, PullNotFound, ConversionNotFound
    ├── ModelBusy (409)
    ├── PayloadTooLarge (413)
    ├── QueueFull (429)
    ├── Cancelled (499)
    ├── GenerationFailed, ReadingFailed, ConversionFailed, ModelLoadFailed, InternalError
    ├── WorkerCrashed
    │   └── WorkerKilled
    ├── NotInstalled (501)
    ├── ServerBusy, ShuttingDown, EnginePaused (503)
    ├── InsufficientMemory, StorageFailed (507)
    └── PullFailed (502): a model's files could not be fetched
        ├── HubTokenMissing, HubTokenInvalid, LicenceNotAccepted (403)
        ├── HubRepositoryNotFound, HubRevisionNotFound, HubFileNotFound (404)
        ├── HubOffline, HubUnreachable, HubFailed, HubFileChanged, CorruptFile
        └── HubTimeout (504), DiskFull (507)

An error says what was wrong, where, and what to do. No message carries a local path or a secret.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, TypedDict, TypeVar

Kind = TypeVar("Kind", bound="ImagegenError")


class Fault(TypedDict):
    """A field that is missing or of a wrong type: `loc` is `["body", NAME, …]`, `type` pydantic's word."""

    loc: list[str | int]
    msg: str
    type: str


def missing(field: str) -> list[Fault]:
    return [{"loc": ["body", field], "msg": "Field required", "type": "missing"}]


class ImagegenError(Exception):
    """Base of all errors that are answered to a client."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    type: ClassVar[str] = "server_error"
    should_retry: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def bare(self: Kind) -> Kind:
        """The same error without a trace, whose frames would keep alive all that they worked on."""
        return copy.copy(self)

    def body(self) -> dict[str, object]:
        """The answer: OpenAI's error object, plus the `detail` that FastAPI-like clients read."""
        return {
            "error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code},
            "detail": self.message,
        }


class InvalidRequest(ImagegenError):
    """`faults` say which fields are missing or of a wrong type, in the form of FastAPI and so of vLLM."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: int | None = None,
        faults: Sequence[Fault] = (),
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.faults = faults

    def body(self) -> dict[str, object]:
        body = super().body()
        return {**body, "detail": list(self.faults)} if self.faults else body


class InvalidSize(InvalidRequest):
    code = "invalid_size"


class InvalidImage(InvalidRequest):
    """`message` stays the exact words that llama-box clients compare; `detail` says what is wrong."""

    code = "invalid_image"

    def __init__(self, reason: str, *, param: str | None = None, faults: Sequence[Fault] = ()) -> None:
        super().__init__("Invalid image", param=param, faults=faults)
        self.reason = reason

    def __str__(self) -> str:
        return f"Invalid image: {self.reason}"

    def body(self) -> dict[str, object]:
        return {**super().body(), "detail": list(self.faults) or str(self)}


class UnknownSampler(InvalidRequest):
    code = "unknown_sampler"


class PromptTooLong(InvalidRequest):
    code = "prompt_too_long"


class UnsupportedOperation(InvalidRequest):
    code = "unsupported_operation"


class MissingComponent(InvalidRequest):
    code = "missing_component"


class MissingAddon(InvalidRequest):
    """A file that a request names, `name` as it spells it, and that is not in the folder of the flag."""

    def __init__(self, message: str, *, param: str | None = None, flag: str = "", name: str = "") -> None:
        super().__init__(message, param=param)
        self.flag = flag
        self.name = name


class InvalidModelFile(InvalidRequest):
    """A model file whose header cannot be read or is not a model this engine knows."""

    code = "invalid_model_file"


class Unauthorized(ImagegenError):
    status = 401
    code = "unauthorized"
    type = "authentication_error"


class Forbidden(ImagegenError):
    status = 403
    code = "forbidden"
    type = "permission_error"


class NotFound(ImagegenError):
    status = 404
    code = "not_found"
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    code = "model_not_found"


class ModelNotDownloaded(NotFound):
    code = "model_not_downloaded"


class JobNotFound(NotFound):
    code = "job_not_found"


class PullNotFound(NotFound):
    code = "pull_not_found"


class ConversionNotFound(NotFound):
    code = "conversion_not_found"


class MethodNotAllowed(ImagegenError):
    status = 405
    code = "method_not_allowed"
    type = "invalid_request_error"


class ModelBusy(ImagegenError):
    """A model is in use, or its files: loaded, or being pulled."""

    status = 409
    code = "model_busy"
    type = "invalid_request_error"


class PayloadTooLarge(ImagegenError):
    status = 413
    code = "payload_too_large"
    type = "invalid_request_error"


class ContentTypeUnsupported(InvalidRequest):
    status = 415
    code = "unsupported_media_type"


class QueueFull(ImagegenError):
    status = 429
    code = "queue_full"
    type = "rate_limit_error"
    should_retry = True


class Cancelled(ImagegenError):
    """The job was cancelled; 499 is the status that proxies log for a client that left."""

    status = 499
    code = "cancelled"
    type = "cancelled"


class InternalError(ImagegenError):
    """A defect of the server itself; the log has the trace."""


class GenerationFailed(ImagegenError):
    code = "generation_failed"


class ReadingFailed(ImagegenError):
    """The text in a picture could not be read."""

    code = "reading_failed"


class ConversionFailed(ImagegenError):
    """A model file could not be written in another type; nothing is left of the attempt."""

    code = "conversion_failed"


class NotInstalled(ImagegenError):
    """An optional library is missing; the message names the command that installs it."""

    status = 501
    code = "not_installed"


class WorkerCrashed(ImagegenError):
    code = "worker_crashed"


class WorkerKilled(WorkerCrashed):
    """Not by a fault of its own: somebody ended the engine's process, or the kernel, for want of memory."""


class ModelLoadFailed(ImagegenError):
    code = "model_load_failed"


class InsufficientMemory(ImagegenError):
    status = 507
    code = "insufficient_memory"


class StorageFailed(ImagegenError):
    """The state folder takes no more, so a job accepted now would be lost in a crash."""

    status = 507
    code = "storage_failed"
    should_retry = True


class ServerBusy(ImagegenError):
    """Other requests hold the memory that this one needs, and did not give it back in time."""

    status = 503
    code = "server_busy"
    should_retry = True


class ShuttingDown(ImagegenError):
    status = 503
    code = "shutting_down"
    should_retry = True


class EnginePaused(ImagegenError):
    """The engine crashed again and again; for a while none is started, and no job taken that needs one."""

    status = 503
    code = "engine_paused"
    should_retry = True


class PullFailed(ImagegenError):
    """A model's files could not be fetched; what has arrived stays, and the next pull goes on from there."""

    status = 502
    code = "pull_failed"


class HubTokenMissing(PullFailed):
    """The repository is gated and no token was sent; not 401, which would mean this server's own key."""

    status = 403
    code = "hub_token_missing"


class HubTokenInvalid(PullFailed):
    status = 403
    code = "hub_token_invalid"


class LicenceNotAccepted(PullFailed):
    status = 403
    code = "licence_not_accepted"


class HubRepositoryNotFound(PullFailed):
    status = 404
    code = "hub_repository_not_found"


class HubRevisionNotFound(PullFailed):
    status = 404
    code = "hub_revision_not_found"


class HubFileNotFound(PullFailed):
    status = 404
    code = "hub_file_not_found"


class HubOffline(PullFailed):
    """Somebody said that this machine is offline (HF_HUB_OFFLINE)."""

    code = "hub_offline"


class HubUnreachable(PullFailed):
    code = "hub_unreachable"
    should_retry = True


class HubTimeout(PullFailed):
    status = 504
    code = "hub_timeout"
    should_retry = True


class HubFailed(PullFailed):
    """The hub answered with a fault of its own, or broke the answer off."""

    code = "hub_failed"
    should_retry = True


class HubFileChanged(PullFailed):
    """The hub has another file under this name than the catalog describes."""

    code = "hub_file_changed"


class CorruptFile(PullFailed):
    code = "corrupt_file"


class DiskFull(PullFailed):
    status = 507
    code = "disk_full"
