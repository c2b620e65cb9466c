"""Fields of a request that are stable-diffusion.cpp's own: noise levels, step caches, tiles, edges that fit.

`docs/engine.md` has all fields of the engine's structs, and which of these each one is.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from gguf_imagegen.planning import values
from gguf_imagegen.planning.bounded_json import json_object
from gguf_imagegen.planning.fields import Finite, Lenient, option
from gguf_imagegen.vocabulary.engine import DEFAULT_TILE, Decoder, Prediction, Seamless, StepCache

MAX_LAYERS = 200
MAX_SIGMAS = 1001


def _seamless(value: object) -> object:
    """True is both ways, as A1111's `tiling` has it; a form says it in words."""
    word = value.strip().lower() if isinstance(value, str) else value
    if word in (False, "false", "0", 0, "off", "none"):
        return None
    return "xy" if word in (True, "true", "1", 1, "on", "both") else word


def _sigmas(value: object) -> object:
    """A form says `14.6,7,0`."""
    return [part for part in re.split(r"[,\s\[\]]+", value) if part] if isinstance(value, str) else value


def _falling(values: tuple[float, ...]) -> tuple[float, ...]:
    """The samplers divide by each level but the last and by their differences."""
    if len(values) == 1:
        raise ValueError("must have at least two values, one more than steps")
    if any(one <= next_ for one, next_ in pairwise(values)) or (values and values[-1] < 0):
        raise ValueError("must fall from value to value, to 0 or above")
    return values


def _tile(value: object) -> object:
    match = re.fullmatch(r"\s*(\d{1,4})(?:\s*[xX*]\s*(\d{1,4}))?\s*", str(value))
    if match is None:
        raise ValueError("must be a side such as 32, or WIDTHxHEIGHT")
    return int(match[1]), int(match[2] or match[1])


def _json(value: object) -> object:
    return (json_object(value, "step_cache_options") or None) if isinstance(value, str) else value


class StepCacheOptions(BaseModel):
    """Details of step caches by the engine's names for them (`sd_cache_params_t`); None is its default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_percent: Finite | None = Field(None, ge=0, le=1)
    end_percent: Finite | None = Field(None, gt=0, le=1)
    error_decay_rate: Finite | None = Field(None, ge=0, le=1)
    use_relative_threshold: bool | None = None
    reset_error_on_compute: bool | None = None
    Fn_compute_blocks: int | None = Field(None, ge=0, le=100)
    Bn_compute_blocks: int | None = Field(None, ge=0, le=100)
    max_warmup_steps: int | None = Field(None, ge=0, le=1000)
    max_cached_steps: int | None = Field(None, ge=-1, le=1000)
    max_continuous_cached_steps: int | None = Field(None, ge=-1, le=1000)
    taylorseer_n_derivatives: int | None = Field(None, ge=1, le=4)
    taylorseer_skip_interval: int | None = Field(None, ge=1, le=1000)
    scm_mask: str | None = Field(None, pattern=r"^[01](,[01]){0,999}$")
    scm_policy_dynamic: bool | None = None
    spectrum_w: Finite | None = Field(None, ge=0, le=1)
    spectrum_m: int | None = Field(None, ge=1, le=8)
    spectrum_lam: Finite | None = Field(None, gt=0, le=100)
    spectrum_window_size: int | None = Field(None, ge=1, le=100)
    spectrum_flex_window: Finite | None = Field(None, ge=0, le=100)
    spectrum_warmup_steps: int | None = Field(None, ge=0, le=1000)
    spectrum_stop_percent: Finite | None = Field(None, gt=0, le=1)


class EngineFields(Lenient):
    """None means "not said"."""

    eta: Finite | None = Field(None, ge=0, le=1)
    flow_shift: Finite | None = Field(None, gt=0, le=100)
    custom_sigmas: Annotated[
        tuple[Annotated[Finite, Field(ge=0, le=1e5)], ...],
        Field(max_length=MAX_SIGMAS),
        BeforeValidator(_sigmas),
        AfterValidator(_falling),
    ] = ()
    shifted_timestep: int = Field(0, ge=0, le=1000)
    prediction: Prediction | None = None
    increase_ref_index: bool = False
    slg_scale: Finite | None = Field(None, ge=0, le=100)
    slg_start: Finite = Field(0.01, ge=0, le=1)
    slg_end: Finite = Field(0.2, ge=0, le=1)
    slg_skip_layers: Annotated[
        tuple[Annotated[int, Field(ge=0, le=200)], ...], Field(max_length=MAX_LAYERS)
    ] = (7, 8, 9)
    step_cache: Annotated[StepCache | None, BeforeValidator(values.off)] = option(
        "step_cache", "cache_mode", default=None
    )
    step_cache_threshold: Finite | None = Field(None, gt=0, le=10)
    step_cache_options: Annotated[
        StepCacheOptions | None, BeforeValidator(_json, json_schema_input_type=StepCacheOptions | None)
    ] = None
    decoder: Decoder | None = None
    t5xxl: Literal["auto", "none"] | None = option("t5xxl", "text_encoder_3", default=None)
    vae_tiling: bool = False
    vae_tile_size: Annotated[
        tuple[Annotated[int, Field(ge=16, le=1024)], Annotated[int, Field(ge=16, le=1024)]] | None,
        BeforeValidator(_tile),
        WithJsonSchema(
            {
                "type": ["integer", "string"],
                "minimum": 16,
                "maximum": 1024,
                "pattern": r"^(1[6-9]|[2-9]\d|[1-9]\d\d)([x*](1[6-9]|[2-9]\d|[1-9]\d\d))?$",
            }
        ),
    ] = None
    vae_tile_overlap: Finite | None = Field(None, ge=0, le=0.5)
    seamless: Annotated[
        Seamless | None,
        BeforeValidator(_seamless, json_schema_input_type=bool | Seamless),
    ] = option("seamless", "tiling", default=None)
    upscale_tile_size: int = Field(DEFAULT_TILE, ge=32, le=2048)
