"""AUTOMATIC1111's some 50 request keys in the fields of this server.

Keys and defaults are those of stable-diffusion-webui (modules/api/models.py, modules/processing.py), of its
fork Forge (`distilled_cfg_scale`) and of sd.cpp's own server (`lora`, `extra_images`, `clip_skip`, in
routes_sdapi.cpp).
Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gguf_imagegen.api.dialects.a1111.controlnet import control_fields, without_controlnet
from gguf_imagegen.api.dialects.a1111.names import (
    is_stand_in,
    sampler_label,
    sampler_of,
    schedule_of,
    take_loras,
)
from gguf_imagegen.planning.faults import validated
from gguf_imagegen.planning.fields import Finite
from gguf_imagegen.planning.request import Text, Upload
from gguf_imagegen.planning.solvers import models_own_note, stand_in_note
from gguf_imagegen.vocabulary.errors import UnsupportedOperation

SAME = (
    "negative_prompt", "seed", "steps", "cfg_scale", "distilled_cfg_scale", "eta", "width", "height",
    "dry_run",
)  # fmt: skip
"""Keys that mean here what they mean there."""
VARIATION = ("subseed", "subseed_strength")
"""The same, where there is a strength."""
NO_EFFECT = ("restore_faces",)
NO_EFFECT_ON_HIRES = (
    "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
)  # fmt: skip
FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
COUNTS = ("batch_size", "n_iter", "width", "height")
"""Keys of which 0 says nothing."""
CROP_AND_RESIZE, RESIZE_AND_FILL = 1, 2
"""Values of `resize_mode`; 0 and 3 stretch."""
FILLS = ("fill", "original", "latent noise", "latent nothing")
"""By `inpainting_fill`: what the repainted part starts from. The engine takes no latents."""


class A1111Request(BaseModel):
    """What of a request needs more than another name. Unknown keys are ignored: clients send dozens."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: Text = ""
    model: str = ""
    """An id of `/v1/models`: SillyTavern's source for sd.cpp's server names it so."""
    sampler_name: str = ""
    sampler_index: str | int = ""
    scheduler: str = ""
    width: int | None = Field(None, ge=1)
    height: int | None = Field(None, ge=1)
    batch_size: int = Field(1, ge=1, le=1000)
    n_iter: int = Field(1, ge=1, le=1000)
    clip_skip: int = 0
    denoising_strength: Finite | None = None
    enable_hr: bool = False
    hr_scale: Finite = 2.0
    hr_resize_x: int = Field(0, ge=0)
    hr_resize_y: int = Field(0, ge=0)
    hr_second_pass_steps: int = Field(0, ge=0)
    hr_upscaler: str = "Latent"
    init_images: list[Upload] = Field([], max_length=16)
    extra_images: list[Upload] = Field([], max_length=16)
    mask: Upload | None = None
    inpainting_mask_invert: int = 0
    inpainting_fill: int = Field(1, ge=0, le=3)
    inpaint_full_res: bool = False
    inpaint_full_res_padding: int = Field(0, ge=0, le=1024)
    mask_blur: int = Field(0, ge=0, le=64)
    tiling: bool = False
    resize_mode: int = Field(0, ge=0, le=3)
    lora: list[dict[str, Any]] = []
    script_name: str = ""
    force_task_id: str = Field("", max_length=200)
    alwayson_scripts: dict[str, Any] = {}
    override_settings: dict[str, Any] = {}
    override_settings_restore_afterwards: bool = True
    include_init_images: bool = False
    send_images: bool = True
    save_images: bool = False

    def without_files(self) -> A1111Request:
        return self.model_copy(
            update={"init_images": [], "extra_images": [], "mask": None, "alwayson_scripts": {}}
        )

    @property
    def only_masked(self) -> bool:
        """Whether the part around the mask alone is drawn, and put back into the image as it is."""
        return self.inpaint_full_res and self.mask is not None

    @property
    def checkpoint(self) -> str:
        """The model of this request by whatever name; empty for the default one."""
        return str(self.override_settings.get("sd_model_checkpoint") or "")


@dataclass(frozen=True)
class Translated:
    """`fields` by their canonical names but for model and images; `warnings` say what has no effect."""

    wanted: A1111Request
    operation: Literal["generation", "edit", "variation"]
    fields: dict[str, Any]
    warnings: list[str]


def translate(
    data: Mapping[str, Any], *, img2img: bool, loras: Collection[str], samplers: Collection[str] = ()
) -> Translated:
    """The request in our fields. `loras` are names that tags may use, `samplers` the engine's own."""
    wanted = validated(A1111Request, data, COUNTS)
    if wanted.script_name not in ("", "None"):
        raise UnsupportedOperation(
            f"script_name: there is no script {wanted.script_name[:60]!r}; this server has none",
            param="script_name",
        )
    prompt, tagged = take_loras(wanted.prompt, loras)
    fields: dict[str, Any] = {key: data[key] for key in SAME if key in data}
    fields |= {"prompt": prompt, "n": wanted.batch_size * wanted.n_iter}
    fields |= _sampling(wanted, samplers)
    if data.get("subseed_strength"):
        fields |= {key: data[key] for key in VARIATION if key in data}
    if wanted.lora or tagged:
        fields["lora"] = [_lora(item) for item in wanted.lora] + tagged
    clip_skip = wanted.clip_skip or wanted.override_settings.get("CLIP_stop_at_last_layers") or 0
    if clip_skip != 0 and clip_skip != -1:
        fields["clip_skip"] = clip_skip
    if output := FORMATS.get(str(wanted.override_settings.get("samples_format", "")).lower()):
        fields["output_format"] = output
    if img2img and wanted.denoising_strength is not None:
        fields["strength"] = wanted.denoising_strength
    if wanted.tiling:
        fields["seamless"] = True
    if img2img and wanted.mask is not None:
        fields |= _inpainting(wanted)
    if wanted.enable_hr and not img2img:
        fields["hires"] = _hires(wanted)
    warnings = [*_without_effect(data, wanted, img2img), *_other_names(wanted, samplers)]
    fields |= control_fields(wanted.alwayson_scripts, wanted.init_images if img2img else [], warnings)
    operation: Literal["generation", "edit", "variation"] = "generation"
    if img2img or wanted.extra_images:
        operation = "edit" if prompt.strip() else "variation"
    return Translated(wanted, operation, fields, warnings)


def _sampling(wanted: A1111Request, samplers: Collection[str]) -> dict[str, str]:
    """A schedule in the sampler's name goes before the scheduler, as in AUTOMATIC1111."""
    sampler, schedule = sampler_of(_sampler_name(wanted), samplers)
    said = {"sampler": sampler, "schedule": schedule or schedule_of(wanted.scheduler)}
    return {key: value for key, value in said.items() if value is not None}


def _sampler_name(wanted: A1111Request) -> str:
    by_index = wanted.sampler_index if isinstance(wanted.sampler_index, str) else ""
    return wanted.sampler_name or by_index


def _lora(item: Mapping[str, Any]) -> dict[str, Any]:
    """sd.cpp's server says `path`; here it is a bare name like any other."""
    name = item.get("name", item.get("id", item.get("path")))
    scale = item.get("scale", item.get("weight", item.get("multiplier", 1.0)))
    return {"name": name, "scale": scale}


def _inpainting(wanted: A1111Request) -> dict[str, Any]:
    """How the mask is used; where a part is drawn alone, the image is not brought to the size asked for."""
    return {
        "mask_blur": wanted.mask_blur,
        "mask_fill": "original" if FILLS[wanted.inpainting_fill] == "original" else "fill",
        "only_masked": wanted.only_masked,
        "only_masked_padding": wanted.inpaint_full_res_padding,
    }


def _hires(wanted: A1111Request) -> dict[str, Any]:
    """One side of `hr_resize` alone keeps the aspect; both go before `hr_scale`."""
    size: dict[str, Any] = {"scale": wanted.hr_scale}
    width, height = wanted.hr_resize_x, wanted.hr_resize_y
    if (width or height) and wanted.width and wanted.height:
        size = {
            "width": width or height * wanted.width // wanted.height,
            "height": height or width * wanted.height // wanted.width,
        }
    elif width or height:
        size = {"width": width or height, "height": height or width}
    strength = 0.75 if wanted.denoising_strength is None else wanted.denoising_strength
    hires = {**size, "denoising_strength": strength}
    if wanted.hr_second_pass_steps:
        hires["steps"] = wanted.hr_second_pass_steps
    hires["upscaler"] = "lanczos" if wanted.hr_upscaler == "None" else wanted.hr_upscaler or "latent"
    return hires


def _without_effect(data: Mapping[str, Any], wanted: A1111Request, img2img: bool) -> list[str]:
    """One warning per thing asked for that this engine does not do; defaults ask for nothing."""
    keys = [key for key in NO_EFFECT if data.get(key)]
    if wanted.enable_hr:
        keys += [
            key
            for key in NO_EFFECT_ON_HIRES
            if not str(data.get(key) or "use same").lower().startswith("use same")
        ]
    warnings = [f"field {key!r} is accepted but has no effect on this engine" for key in keys]
    if img2img and wanted.mask is not None and wanted.inpainting_fill > 1:
        warnings.append(
            "inpainting_fill: the engine takes no latents;"
            f" 'fill' was used for {FILLS[wanted.inpainting_fill]!r}"
        )
    if img2img and wanted.resize_mode == RESIZE_AND_FILL:
        warnings.append("resize_mode: 'resize and fill' is not known here; the image is cropped and resized")
    for name in without_controlnet(wanted.alwayson_scripts):
        warnings.append(f"alwayson_scripts: {name[:60]!r} is not known here and was ignored")
    if schedule_of(wanted.scheduler) == "smoothstep" and wanted.scheduler.lower() == "beta":
        warnings.append("scheduler: 'Beta' is not known here; 'Smoothstep', the nearest to it, was used")
    return warnings


def _other_names(wanted: A1111Request, samplers: Collection[str]) -> list[str]:
    """What became of a sampler that is not here."""
    name = _sampler_name(wanted)
    sampler, _ = sampler_of(name, samplers)
    if sampler is not None and sampler != name.lower() and is_stand_in(name):
        return [stand_in_note("sampler_name", name, sampler_label(sampler))]
    return [models_own_note("sampler_name", name)] if name.strip().lower() == "default" else []
