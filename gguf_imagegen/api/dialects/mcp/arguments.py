"""What the tools of the MCP server take, and what they are for, in the words that a language model reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gguf_imagegen.vocabulary.errors import InvalidRequest

Kind = TypeVar("Kind", bound="Arguments")
WAIT = 50.0
"""Seconds; many clients give a tool up after a minute."""
LONGEST_WAIT = 600.0
IMAGE = "a data: URL or base64; or the address, file name or job id of a picture that this server made"
WAIT_SECONDS = "seconds to wait for the end; after that the job goes on, and job_status picks it up"


class Arguments(BaseModel):
    """Of one tool. What it does not know is refused, so that a misspelt name has no silent effect."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def fields(self) -> dict[str, Any]:
        """What was said, by the names that image requests have."""
        said = self.model_dump(exclude_unset=True, exclude={"wait_seconds"})
        return {name: value for name, value in said.items() if value is not None}


class Waiting(Arguments):
    wait_seconds: float = Field(WAIT, ge=0, le=LONGEST_WAIT, description=WAIT_SECONDS)


class GenerateImage(Waiting):
    """Make pictures from a text. Answers the pictures, their addresses and a job id; if they take longer than
    `wait_seconds`, the job id alone: call job_status with it."""

    prompt: str = Field(min_length=1, description="what the picture shows")
    negative_prompt: str | None = Field(None, description="what it must not show")
    model: str | None = Field(None, description="a name of list_models; the default model if not given")
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or auto", examples=["512x512"])
    n: int | None = Field(None, ge=1, description="number of pictures")
    steps: int | None = Field(None, ge=1, description="denoising steps; more take longer")
    cfg_scale: float | None = Field(None, ge=0, le=100, description="how closely to follow the prompt")
    seed: int | None = Field(None, ge=-1, description="the same seed makes the same picture; -1 is random")
    sampler: str | None = Field(None, description="e.g. euler_a; the model's own if not given")
    schedule: str | None = Field(None, description="e.g. karras; the model's own if not given")
    output_format: str | None = Field(None, description="png, jpeg or webp")


class EditImage(GenerateImage):
    """Change a picture by a text, wholly or where a mask is white. Answers as generate_image does."""

    image: str | list[str] = Field(description=f"the picture, or several for models that take them: {IMAGE}")
    mask: str | None = Field(None, description="white where to repaint, black where to keep; as `image`")
    strength: float | None = Field(None, ge=0, le=1, description="how much is changed, 0 to 1")


class UpscaleImage(Waiting):
    """Enlarge a picture by an upscaling model. Answers as generate_image does."""

    image: str = Field(description=f"the picture: {IMAGE}")
    factor: float = Field(2.0, gt=1, le=8, description="times the width and the height")
    upscaler: str | None = Field(None, description="name of the upscaling model; the first one if not given")
    output_format: str | None = Field(None, description="png, jpeg or webp")


class ListModels(Arguments):
    """The models that can make pictures now, the default one first, with what each can do."""


class JobStatus(Arguments):
    """How far a job is: its pictures if it has ended, else progress and the newest preview. With
    `wait_seconds` it waits for the end; without `job_id` it lists your latest jobs."""

    job_id: str | None = Field(None, description="as returned by generate_image")
    wait_seconds: float = Field(0.0, ge=0, le=LONGEST_WAIT, description=WAIT_SECONDS)


class CancelJob(Arguments):
    """Stop a job that waits or runs."""

    job_id: str = Field(description="as returned by generate_image")


def parsed(kind: type[Kind], arguments: Mapping[str, Any]) -> Kind:
    """The arguments in their types. Raises InvalidRequest that says which one is wrong, and what is known."""
    try:
        return kind.model_validate(arguments)
    except ValidationError as exc:
        faults = exc.errors(include_url=False, include_context=False, include_input=False)
    fault = min(faults, key=lambda each: each["type"] != "extra_forbidden")  # it explains what is missing
    where = str(fault["loc"][0]) if fault["loc"] else "arguments"
    if fault["type"] == "extra_forbidden":
        known = ", ".join(kind.model_fields) or "none"
        raise InvalidRequest(f"{where}: unknown argument; known: {known}", param=where)
    if fault["type"] == "missing":
        raise InvalidRequest(f"{where}: is required", param=where)
    raise InvalidRequest(f"{where}: {fault['msg']}", param=where)


def schema_of(kind: type[Arguments]) -> dict[str, Any]:
    """JSON Schema for clients: an argument that may be left out is no null, and titles say nothing."""
    schema = {"properties": {}, **kind.model_json_schema()}
    required = schema.get("required", ())
    order = sorted(schema["properties"], key=lambda name: (name not in required, name == "wait_seconds"))
    properties = {name: _plain(schema["properties"][name]) for name in order}
    kept = {
        key: value for key, value in schema.items() if key in ("type", "required", "additionalProperties")
    }
    return {**kept, "properties": properties}


def _plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    plain = {key: value for key, value in schema.items() if key not in ("anyOf", "title")}
    if plain.get("default", ...) is None:
        del plain["default"]
    if len(kinds) == 1:
        return {**kinds[0], **plain}
    return {**plain, "anyOf": kinds} if kinds else plain
