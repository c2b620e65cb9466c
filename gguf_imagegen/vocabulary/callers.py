"""Who sends requests: the caller, what it may ask for, and the sender of one job."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class CallersError(Exception):
    """The callers file is wrong; the message names the file, the entry and the field, never a key."""


class Allowance(BaseModel):
    """What one caller may ask for, beside the limits of the server; None is no limit of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    jobs: int | None = Field(None, ge=1, description="jobs that wait or run at once")
    images: int | None = Field(None, ge=1, description="images in one request")
    megapixels: float | None = Field(None, ge=0.0041, description="size of an image, before any upscale")
    steps: int | None = Field(None, ge=1, description="denoising steps")


UNBOUNDED = Allowance()


@dataclass(frozen=True)
class Caller:
    """One who has a key. An admin sees the jobs and images of all, and manages the models."""

    name: str
    admin: bool = False
    bounds: Allowance = UNBOUNDED

    def may_see(self, owner: str) -> bool:
        """Whether jobs and images of the caller named `owner` are there for this one."""
        return self.admin or self.name == owner


EVERYBODY = Caller("everybody", admin=True)
"""The one caller of a server without keys, and of all keys of --api-key."""
OUTSIDER = Caller("")
"""Who needs no key, for a page or a health check on a server with keys."""


@dataclass(frozen=True)
class Sender:
    """Where a job came from: its caller, the dialect by its name, words for the log."""

    caller: Caller = EVERYBODY
    dialect: str = ""
    words: str = "nobody"
