"""One image request, whatever dialect it came in: canonical fields, their aliases, types and ranges.

Field names and aliases are those of OpenAI's images API, llama-box, OpenVINO Model Server, vLLM-Omni,
Xinference and AUTOMATIC1111, see `docs/api.md`. Model-dependent checks are in `gguf_imagegen.planning.plan`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.planning import values
from gguf_imagegen.planning.engine_fields import EngineFields
from gguf_imagegen.planning.faults import explained
from gguf_imagegen.planning.fields import Finite, Lenient, option
from gguf_imagegen.planning.said import said
from gguf_imagegen.planning.solvers import MODELS_OWN, NEAREST, key_of, models_own_note, stand_in_note
from gguf_imagegen.planning.without_effect import WITHOUT_EFFECT, warnings_of
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.engine import DEFAULT_TILE
from gguf_imagegen.vocabulary.errors import InvalidImage, InvalidRequest, InvalidSize, UnknownSampler

LONGEST_NAME = 100
MAX_PRIORITY = 10
MAX_SEED = 2**53 - 1
"""Largest seed that survives JSON in every client."""


def _known(kind: Literal["sampler", "schedule"]) -> BeforeValidator:
    """One of the engine's own: `Abilities` come as pydantic's context."""

    def check(value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        able: Abilities = info.context or ABILITIES
        names = able.samplers if kind == "sampler" else able.schedules
        name = value[:LONGEST_NAME].strip().lower()
        if name in names and len(value) <= LONGEST_NAME:
            return name
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {value[:60]!r}{hint} Valid: {', '.join(names)}")

    return BeforeValidator(check)


Text = Annotated[str, AfterValidator(values.unicode)]
Upload = Annotated[bytes, BeforeValidator(values.image)]
Sampler = Annotated[str, _known("sampler")]
Schedule = Annotated[str, _known("schedule")]
Size = Annotated[
    tuple[int, int] | None,
    BeforeValidator(values.size),
    WithJsonSchema({"type": "string", "pattern": r"^(auto|[1-9]\d{0,5}[x*][1-9]\d{0,5})$"}),
]
Seed = Annotated[
    int | None,
    BeforeValidator(values.random_seed),
    WithJsonSchema({"type": ["integer", "null"], "minimum": -1, "maximum": MAX_SEED}),
]
"""The schemas tell the OpenAPI document what a client may say, before it is made into the type here."""


_UPLOADS = BeforeValidator(
    values.images, json_schema_input_type=Annotated[list[Upload], Field(max_length=16)] | Upload
)


Weight = Annotated[float, Field(allow_inf_nan=False, ge=-10, le=10)]


class StreamOptions(Lenient):
    """llama-box's `stream_options`, plus `dialect`."""

    dialect: Literal["llama-box", "openai", "both"] | None = None
    include_usage: bool = False
    preview: bool | Literal["proj", "tae", "vae"] = False
    chunk_results: bool = option("chunk_results", "chunk_result", "chunk", default=False)
    chunk_size: int = Field(4096, ge=64, le=1 << 20)


class LoraRequest(Lenient):
    name: str = option("name", "id", max_length=255)
    scale: Finite = option("scale", "weight", "multiplier", default=1.0, ge=-10, le=10)


class HiresRequest(Lenient):
    """`width` and `height`, where given, are the size after the second pass in the place of `scale`."""

    scale: Finite = Field(2.0, ge=0, le=4)
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1, le=1000)
    denoising_strength: Finite = Field(0.7, gt=0, le=1)
    upscaler: str = Field("latent", max_length=200)
    upscale_tile_size: int = Field(DEFAULT_TILE, ge=32, le=2048)


def _second_pass(hires: HiresRequest | None) -> HiresRequest | None:
    """A scale up to 1 asks for none."""
    return hires if hires and (hires.scale > 1 or hires.width or hires.height) else None


class ImageRequest(EngineFields):
    """A generation or an edit as the client asked for it; None means "not said"."""

    prompt: Text = ""
    enhance: bool = False
    negative_prompt: Text = option("negative_prompt", "negative_sampler", default="")
    model: str | None = None
    n: int | None = option(
        "n", "batch_count", "num_images_per_prompt", "num_outputs_per_prompt", default=None, ge=1
    )
    size: Size = None
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, BeforeValidator(values.jpeg)] = None
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Annotated[Literal["b64_json", "url", "file"] | None, BeforeValidator(values.base64)] = (
        None
    )
    stream: bool = False
    stream_options: StreamOptions | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    on_disconnect: Literal["cancel", "continue"] = "cancel"
    keep_alive: Finite | None = Field(None, ge=-1)
    priority: int = Field(0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    webhook: Text | None = Field(None, max_length=2000)
    request_id: Text | None = Field(None, max_length=200)
    dry_run: bool = False

    sampler: Sampler | None = option(
        "sampler", "sample_method", "sampler_name", "sampling_method", "sampler_index", default=None
    )
    schedule: Schedule | None = option("schedule", "schedule_method", "scheduler", default=None)
    steps: int | None = option(
        "steps", "sample_steps", "sampling_steps", "num_inference_steps", "step", default=None, ge=1
    )
    cfg_scale: Finite | None = option("cfg_scale", "true_cfg_scale", "txt_cfg", default=None, ge=0, le=100)
    guidance: Finite | None = option(
        "guidance", "distilled_guidance", "distilled_cfg_scale", default=None, ge=0, le=100
    )
    guidance_scale: Finite | None = Field(None, ge=0, le=100)
    image_cfg_scale: Finite | None = option("image_cfg_scale", "img_cfg", default=None, ge=0, le=100)
    strength: Finite | None = option("strength", "denoising_strength", default=None, ge=0, le=1)
    seed: Seed = option("seed", "rng_seed", default=None, ge=0, le=MAX_SEED)
    variation_seed: Seed = option("variation_seed", "subseed", default=None, ge=0, le=MAX_SEED)
    variation_strength: Finite = option("variation_strength", "subseed_strength", default=0.0, ge=0, le=1)
    clip_skip: int | None = Field(None, ge=-1, le=12)
    hires: Annotated[HiresRequest | None, AfterValidator(_second_pass)] = None
    lora_alphas: Annotated[dict[str, Weight], BeforeValidator(values.mapping), Field(max_length=8)] = option(
        "lora_alphas", "lora_weights", default={}
    )
    lora: Annotated[tuple[LoraRequest, ...], BeforeValidator(values.loras), Field(max_length=8)] = ()

    image: Annotated[tuple[Upload, ...], _UPLOADS, Field(max_length=16)] = option(
        "image", "image[]", "images", "init_images", "url", default=()
    )
    mask: Upload | None = option("mask", "mask_image", default=None)
    mask_blur: int = Field(0, ge=0, le=64)
    mask_fill: Literal["original", "fill"] = "original"
    only_masked: bool = False
    only_masked_padding: int = Field(32, ge=0, le=1024)
    control: Upload | None = option("control", "control_image", default=None)
    control_model: str | None = option("control_model", "control_net", default=None, max_length=255)
    control_strength: Finite = Field(0.9, ge=0, le=2)
    control_preprocess: Literal["none", "canny"] = "none"
    control_canny: bool = False
    upscale: Finite | None = Field(None, gt=1, le=8)
    upscaler: str | None = Field(None, max_length=200)

    @property
    def canny(self) -> bool:
        """Whether the ControlNet gets the edges of its image."""
        return self.control_canny or self.control_preprocess == "canny"

    def without_files(self) -> ImageRequest:
        return self.model_copy(update={"image": (), "mask": None, "control": None})


NULL_ENCODER = "text_encoder_3"
"""In diffusers a null here leaves T5 out of SD3."""
FLAT = "stream_options_"
"""Begins the names of single stream options (llama-box)."""

_FIELD_OF = {
    name: key
    for key, field in ImageRequest.model_fields.items()
    for name in (
        key,
        *(field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else ()),
    )
    if isinstance(name, str)
}
"""The canonical field by every name that a request may use."""
_COUNTS = {name for name, field in _FIELD_OF.items() if field in ("n", "steps", "width", "height")}
"""Of these 0 says nothing."""


def parse_request(data: Mapping[str, Any], able: Abilities = ABILITIES) -> tuple[ImageRequest, list[str]]:
    """The validated request and warnings on keys that have no effect; raises InvalidRequest kinds.

    What is empty is a field not said: many clients send one for every field they know. Only diffusers' null
    text encoder is a wish.
    """
    renamed: list[str] = []
    without_t5 = {"t5xxl": "none"} if NULL_ENCODER in data and data[NULL_ENCODER] is None else {}
    data = _flat_control({**without_t5, **said(data, _COUNTS)})
    data = _named_here(data, able, renamed)
    flat = {name.removeprefix(FLAT): data.pop(name) for name in list(data) if name.startswith(FLAT)}
    if flat and isinstance(data.setdefault("stream_options", {}), Mapping):
        data["stream_options"] = {**flat, **data["stream_options"]}
    try:
        request = ImageRequest.model_validate(data, context=able)
    except ValidationError as exc:
        raise _translate(exc) from exc
    others = sorted(set(data) - set(_FIELD_OF))
    unknown = [f"unknown field {key[:80]!r} was ignored" for key in others if key not in WITHOUT_EFFECT]
    known = [key for key in others if key in WITHOUT_EFFECT]
    return request, [*renamed, *_ignored(data, request), *unknown, *warnings_of(known, data)]


def _named_here(data: dict[str, Any], able: Abilities, warnings: list[str]) -> dict[str, Any]:
    """The fields with samplers and schedules by our names for them, as far as there are any."""
    samplers = {key_of(name): name for name in able.samplers}
    for field, name in list(data.items()):
        kind = _FIELD_OF.get(field)
        if kind not in ("sampler", "schedule") or not isinstance(name, str) or len(name) > LONGEST_NAME:
            continue
        key = key_of(name)
        if key in MODELS_OWN and (kind == "sampler" or key != "default"):
            warnings.append(models_own_note(field, name))
            del data[field]
        elif kind == "sampler" and key in samplers:
            data[field] = samplers[key]
        elif kind == "sampler" and NEAREST.get(key) in able.samplers:
            warnings.append(stand_in_note(field, name, NEAREST[key]))
            data[field] = NEAREST[key]
    return data


def _flat_control(data: dict[str, Any]) -> dict[str, Any]:
    """`control` may be an object of its image and all that is said about it."""
    control = data.get("control")
    if not isinstance(control, Mapping) or "image_url" in control or "b64_json" in control:
        return data
    fields = {f"control_{name}": value for name, value in control.items() if value is not None}
    return {**{name: value for name, value in data.items() if name != "control"}, **fields}


def _ignored(data: Mapping[str, Any], request: ImageRequest) -> list[str]:
    """A warning for each field that says something else than another one, which goes before it."""
    warnings, used = [], dict[str, str]()
    for name in (name for name in _FIELD_OF if name in data):
        first = used.setdefault(_FIELD_OF[name], name)
        if name != first and _plain(data[name]) != _plain(data[first]):
            warnings.append(f"field {name!r} was ignored: {first!r} was given too")
    if request.size:
        sides = zip(("width", "height"), (request.width, request.height), request.size, strict=True)
        warnings += [
            f"field {name!r} was ignored: 'size' was given too"
            for name, said, side in sides
            if said not in (None, side)
        ]
    return warnings


def _plain(value: object) -> object:
    """A value as a form and JSON both say it."""
    if not isinstance(value, str | int | float) or (isinstance(value, str) and len(value) > LONGEST_NAME):
        return value
    text = str(value).strip().lower()
    try:
        return float(text)
    except ValueError:
        return text


def _translate(exc: ValidationError) -> InvalidRequest:
    message, param, faults = explained(exc)
    match _FIELD_OF.get(param or ""):
        case "size":
            return InvalidSize(message, param=param, faults=faults)
        case "sampler" | "schedule":
            return UnknownSampler(message, param=param, faults=faults)
        case "image" | "mask" | "control":
            return InvalidImage(message, param=param, faults=faults)
        case _:
            return InvalidRequest(message, param=param, faults=faults)
