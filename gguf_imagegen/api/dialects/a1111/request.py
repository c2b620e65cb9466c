"""AUTOMATIC1111's some 50 request keys in the fields of this server.

Keys and defaults are those of stable-diffusion-webui (modules/api/models.py, modules/processing.py), of its
fork Forge (`distilled_cfg_scale`) and of sd.cpp's own server (`lora`, `extra_images`, `clip_skip`, in
routes_sdapi.cpp).
Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gguf_imagegen.api.dialects.a1111.names import sampler_of, schedule_of, take_loras
from gguf_imagegen.pictures import decode, encode
from gguf_imagegen.planning.request import Finite, Text, Upload
from gguf_imagegen.vocabulary.errors import InvalidRequest, UnsupportedOperation

Model = TypeVar("Model", bound=BaseModel)

SAME = (
    "negative_prompt", "seed", "steps", "cfg_scale", "distilled_cfg_scale", "eta", "width", "height",
)  # fmt: skip
"""Keys that mean here what they mean there."""
NO_EFFECT = ("restore_faces", "tiling", "styles", "subseed_strength")
NO_EFFECT_ON_HIRES = (
    "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt", "hr_negative_prompt",
)  # fmt: skip
NO_EFFECT_ON_MASKS = ("mask_blur", "inpaint_full_res")
FORMATS = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}
CROP_AND_RESIZE, RESIZE_AND_FILL = 1, 2
"""Values of `resize_mode`; 0 and 3 stretch."""
ORIGINAL = 1
"""The value of `inpainting_fill` that this engine has: start from what is under the mask."""


class A1111Request(BaseModel):
    """What of a request needs more than another name. Unknown keys are ignored: clients send dozens."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: Text = ""
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
    inpainting_fill: int = 0
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
        return self.model_copy(update={"init_images": [], "extra_images": [], "mask": None})

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


def validated(kind: type[Model], data: Mapping[str, Any]) -> Model:
    """The request in its types; a null or an empty mask is a key not said. Raises InvalidRequest."""
    said = {key: value for key, value in data.items() if value is not None and (key, value) != ("mask", "")}
    try:
        return kind.model_validate(said)
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, fault["loc"]))
        param = str(fault["loc"][0]) if fault["loc"] else None
        raise InvalidRequest(f"{where}: {fault['msg'].removeprefix('Value error, ')}", param=param) from exc


def translate(
    data: Mapping[str, Any], *, img2img: bool, loras: Collection[str], samplers: Collection[str] = ()
) -> Translated:
    """The request in our fields. `loras` are names that tags may use, `samplers` the engine's own."""
    wanted = validated(A1111Request, data)
    if wanted.script_name not in ("", "None"):
        raise UnsupportedOperation(
            f"script_name: there is no script {wanted.script_name[:60]!r}; this server has none",
            param="script_name",
        )
    prompt, tagged = take_loras(wanted.prompt, loras)
    fields: dict[str, Any] = {key: data[key] for key in SAME if key in data}
    fields |= {"prompt": prompt, "n": wanted.batch_size * wanted.n_iter}
    fields |= _sampling(wanted, samplers)
    if wanted.lora or tagged:
        fields["lora"] = [_lora(item) for item in wanted.lora] + tagged
    clip_skip = wanted.clip_skip or wanted.override_settings.get("CLIP_stop_at_last_layers") or 0
    if clip_skip != 0 and clip_skip != -1:
        fields["clip_skip"] = clip_skip
    if output := FORMATS.get(str(wanted.override_settings.get("samples_format", "")).lower()):
        fields["output_format"] = output
    if img2img and wanted.denoising_strength is not None:
        fields["strength"] = wanted.denoising_strength
    if wanted.enable_hr and not img2img:
        fields["hires"] = _hires(wanted)
    operation: Literal["generation", "edit", "variation"] = "generation"
    if img2img or wanted.extra_images:
        operation = "edit" if prompt.strip() else "variation"
    return Translated(wanted, operation, fields, _without_effect(data, wanted, img2img))


def _sampling(wanted: A1111Request, samplers: Collection[str]) -> dict[str, str]:
    """A schedule in the sampler's name goes before the scheduler, as in AUTOMATIC1111."""
    by_index = wanted.sampler_index if isinstance(wanted.sampler_index, str) else ""
    sampler, schedule = sampler_of(wanted.sampler_name or by_index, samplers)
    said = {"sampler": sampler, "schedule": schedule or schedule_of(wanted.scheduler)}
    return {key: value for key, value in said.items() if value is not None}


def _lora(item: Mapping[str, Any]) -> dict[str, Any]:
    """sd.cpp's server says `path`; here it is a bare name like any other."""
    name = item.get("name", item.get("id", item.get("path")))
    scale = item.get("scale", item.get("weight", item.get("multiplier", 1.0)))
    return {"name": name, "scale": scale}


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
    if img2img and wanted.mask is not None:
        keys += [key for key in NO_EFFECT_ON_MASKS if data.get(key)]
        keys += ["inpainting_fill"] * (wanted.inpainting_fill != ORIGINAL)
    warnings = [f"field {key!r} is accepted but has no effect on this engine" for key in keys]
    if img2img and wanted.resize_mode == RESIZE_AND_FILL:
        warnings.append("resize_mode: 'resize and fill' is not known here; the image is cropped and resized")
    for name in wanted.alwayson_scripts:
        warnings.append(f"alwayson_scripts: {name[:60]!r} is not known here and was ignored")
    if schedule_of(wanted.scheduler) == "smoothstep" and wanted.scheduler.lower() == "beta":
        warnings.append("scheduler: 'Beta' is not known here; 'Smoothstep', the nearest to it, was used")
    return warnings


# -- pictures -----------------------------------------------------------------------------------------


def input_images(wanted: A1111Request, *, img2img: bool, max_pixels: int) -> dict[str, Any]:
    """The fields `image` and `mask`. CPU-bound: call it in a thread. Raises InvalidImage.

    Images are flattened onto white and, in the resize modes that do so, stretched to the size asked for. Of a
    mask with transparency the opaque part counts, of another the white one: that part is repainted.
    """
    pictures = [
        _fitted(data, wanted, max_pixels, "init_images") for data in (wanted.init_images if img2img else [])
    ]
    pictures += [(data, None) for data in wanted.extra_images]
    fields: dict[str, Any] = {"image": [data for data, _ in pictures]} if pictures else {}
    if img2img and wanted.mask is not None:
        fields["mask"] = _mask(wanted, pictures[0][1] if pictures else None, max_pixels)
    return fields


def memory_of(wanted: A1111Request, *, img2img: bool, max_pixels: int) -> int:
    """Bytes that `input_images` takes, by the headers. Raises InvalidImage for a file that cannot be used."""
    files = [("init_images", data) for data in wanted.init_images]
    files += [("mask", wanted.mask)] if wanted.mask is not None else []
    headers = [decode.inspect(data, max_pixels=max_pixels, param=param) for param, data in files if img2img]
    return max((2 * header.memory for header in headers), default=0)


def _fitted(
    data: bytes, wanted: A1111Request, max_pixels: int, param: str
) -> tuple[bytes, decode.Size | None]:
    """The file, made anew only if something changes, and its size."""
    header = decode.inspect(data, max_pixels=max_pixels, param=param)
    size = _stretched(wanted, header.size, max_pixels)
    if size == header.size and not header.may_be_transparent:
        return data, header.size
    enough = size if size != header.size else None
    picture = decode.decode(data, max_pixels=max_pixels, param=param, enough=enough)
    if size == header.size and not decode.has_transparency(picture):
        return data, header.size
    changed = decode.flatten(picture)
    return _png(changed if enough is None else changed.resize(size, Image.Resampling.LANCZOS)), size


def _stretched(wanted: A1111Request, size: decode.Size, max_pixels: int) -> decode.Size:
    """The size to which an image of this size is brought before anything else; the same for most."""
    if not (wanted.width and wanted.height) or wanted.resize_mode in (CROP_AND_RESIZE, RESIZE_AND_FILL):
        return size
    same_aspect = size[0] * wanted.height == size[1] * wanted.width
    return size if same_aspect or wanted.width * wanted.height > max_pixels else (wanted.width, wanted.height)


def _mask(wanted: A1111Request, size: decode.Size | None, max_pixels: int) -> bytes:
    """A grey file in which white is repainted, of the image's size."""
    picture = decode.decode(wanted.mask or b"", max_pixels=max_pixels, param="mask", enough=size)
    grey = picture.getchannel("A") if decode.has_transparency(picture) else picture.convert("L")
    if wanted.inpainting_mask_invert:
        grey = grey.point([255 - value for value in range(256)])
    if size is not None and grey.size != size:
        grey = grey.resize(size, Image.Resampling.BOX)
    return _png(grey.convert("RGB"))


def _png(picture: Image.Image) -> bytes:
    return encode.encode_picture(picture, format="png")
