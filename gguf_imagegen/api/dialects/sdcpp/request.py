"""The native request schema of sd.cpp's own server, mapped to canonical fields.

Names, defaults and meaning are those of sd.cpp's examples/server/api.md ("sdcpp API") and of
`SDGenerationParams` in its examples/common. Types are checked here and ranges by `planning.request`. What no
canonical field can say keeps its name ("sample_params.custom_sigmas"), so that the answer warns about it,
unless it has its default: clients send back the whole object that the capabilities gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf_imagegen.api.dialects.sdcpp.joined import HIRES_SCALE, STRENGTH, joined
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.planning.said import says_nothing
from gguf_imagegen.vocabulary.errors import InvalidRequest

Read = Callable[[Any], Any]
"""A value of the right type, or None where it means "not said"; ValueError says what it must be."""


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError("must be text")


def _name(value: Any) -> str | None:
    """A sampler, schedule or format; "default" leaves it to the model."""
    name = _text(value).strip().lower()
    return None if name in ("", "default") else name


def _upload(value: Any) -> str | bytes:
    """A picture as base64 or data URL; decoded later."""
    if isinstance(value, str | bytes):
        return value
    raise ValueError("must be base64 or a data URL")


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError("must be true or false")


def _number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise ValueError("must be a number")


def _integer(value: Any) -> int:
    """A whole number, also one that JavaScript wrote as 20.0."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("must be a whole number")


def _positive(read: Read) -> Read:
    """sd.cpp's 0 and -1 stand for "unset"."""

    def check(value: Any) -> Any:
        found = read(value)
        return None if found <= 0 else found

    return check


def _seed(value: Any) -> int | None:
    """Any negative seed is a random one."""
    return None if _integer(value) < 0 else _integer(value)


def _compression(value: Any) -> int:
    return min(max(_integer(value), 0), 100)


def _list(read: Read) -> Read:
    def check(value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError("must be a list")
        return [read(item) for item in value]

    return check


def _lora(value: Any) -> dict[str, Any]:
    """`{"path" or "name", "multiplier", "is_high_noise"}`, its file named by `name`."""
    if not isinstance(value, Mapping):
        raise ValueError('must hold objects such as {"path": "x", "multiplier": 0.8}')
    name = value.get("path") or value.get("name") or value.get("id")
    if not isinstance(name, str):
        raise ValueError("each needs a path, the name of a file of the LoRA folder")
    said = {key: part for key, part in value.items() if part is not None}
    return {**said, "name": name, "is_high_noise": _flag(said.get("is_high_noise", False))}


@dataclass(frozen=True)
class Leaf:
    """A field of the native schema; without a canonical `field` this engine cannot honour it."""

    read: Read
    field: str = ""
    default: Any = None


LEAVES: Mapping[str, Leaf] = {
    "prompt": Leaf(_text, "prompt", ""),
    "negative_prompt": Leaf(_text, "negative_prompt", ""),
    "clip_skip": Leaf(_positive(_integer), "clip_skip", -1),
    "width": Leaf(_positive(_integer), "width", 512),
    "height": Leaf(_positive(_integer), "height", 512),
    "strength": Leaf(_number, "strength", STRENGTH),
    "seed": Leaf(_seed, "seed", -1),
    "batch_count": Leaf(_positive(_integer), "n", 1),
    "auto_resize_ref_image": Leaf(_flag, default=True),
    "increase_ref_index": Leaf(_flag, "increase_ref_index", False),
    "control_strength": Leaf(_number, "control_strength", 0.9),
    "embed_image_metadata": Leaf(_flag, default=True),
    "init_image": Leaf(_upload, "init_image"),
    "ref_images": Leaf(_list(_upload), "ref_images", []),
    "mask_image": Leaf(_upload, "mask"),
    "control_image": Leaf(_upload, "control"),
    "sample_params.scheduler": Leaf(_name, "schedule", "default"),
    "sample_params.sample_method": Leaf(_name, "sampler", "default"),
    "sample_params.sample_steps": Leaf(_positive(_integer), "steps", 20),
    "sample_params.eta": Leaf(_number, "eta"),
    "sample_params.shifted_timestep": Leaf(_positive(_integer), "shifted_timestep", 0),
    "sample_params.custom_sigmas": Leaf(_list(_number), "custom_sigmas", []),
    "sample_params.flow_shift": Leaf(_positive(_number), "flow_shift"),
    "sample_params.guidance.txt_cfg": Leaf(_number, "cfg_scale", 7.0),
    "sample_params.guidance.img_cfg": Leaf(_number, "image_cfg_scale"),
    "sample_params.guidance.distilled_guidance": Leaf(_number, "guidance", 3.5),
    "sample_params.guidance.slg.layers": Leaf(_list(_integer), "slg_skip_layers", [7, 8, 9]),
    "sample_params.guidance.slg.layer_start": Leaf(_number, "slg_start", 0.01),
    "sample_params.guidance.slg.layer_end": Leaf(_number, "slg_end", 0.2),
    "sample_params.guidance.slg.scale": Leaf(_number, "slg_scale", 0.0),
    "lora": Leaf(_list(_lora), "lora", []),
    "hires.enabled": Leaf(_flag, "hires.enabled", False),
    "hires.upscaler": Leaf(_text, "hires.upscaler", "Latent"),
    "hires.scale": Leaf(_positive(_number), "hires.scale", HIRES_SCALE),
    "hires.target_width": Leaf(_positive(_integer), "hires.width", 0),
    "hires.target_height": Leaf(_positive(_integer), "hires.height", 0),
    "hires.steps": Leaf(_positive(_integer), "hires.steps", 0),
    "hires.denoising_strength": Leaf(_number, "hires.denoising_strength", 0.7),
    "hires.upscale_tile_size": Leaf(_positive(_integer), "hires.upscale_tile_size", 128),
    "vae_tiling_params.enabled": Leaf(_flag, "vae_tiling", False),
    "vae_tiling_params.tile_size_x": Leaf(_positive(_integer), "tiles.x", 0),
    "vae_tiling_params.tile_size_y": Leaf(_positive(_integer), "tiles.y", 0),
    "vae_tiling_params.target_overlap": Leaf(_number, "tiles.overlap", 0.5),
    "vae_tiling_params.rel_size_x": Leaf(_number, default=0.0),
    "vae_tiling_params.rel_size_y": Leaf(_number, default=0.0),
    "cache_mode": Leaf(_name, "step_cache", "disabled"),
    "cache_option": Leaf(_text, "cache.option", ""),
    "scm_mask": Leaf(_text, "cache.scm_mask", ""),
    "scm_policy_dynamic": Leaf(_flag, "cache.scm_policy_dynamic", True),
    "output_format": Leaf(_name, "output_format", "png"),
    "output_compression": Leaf(_compression, "output_compression", 100),
}
_OBJECTS = {path[:at] for path in LEAVES for at, character in enumerate(path) if character == "."}
_NATIVE = {leaf.field: path for path, leaf in LEAVES.items()} | {
    "image": "init_image",
    "step_cache_threshold": "cache_option",
    "step_cache_options": "cache_option",
    "vae_tile_size": "vae_tiling_params.tile_size_x",
    "vae_tile_overlap": "vae_tiling_params.target_overlap",
}


def native_name(field: str | None) -> str | None:
    """The native name of a canonical field, for messages; any other name stays."""
    return _NATIVE.get(field, field) if field else field


def to_fields(native: Mapping[str, Any]) -> dict[str, Any]:
    """Canonical fields of a native request; other keys stay, so that `model` and the like work here too.

    Nulls and what is empty are fields not said. Raises InvalidRequest, naming the field, on a wrong type.
    """
    fields: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for path, value in _leaves(native, ""):
        leaf = LEAVES.get(path)
        if leaf is None:
            others[path] = value
            continue
        try:
            found = leaf.read(value)
        except ValueError as exc:
            raise InvalidRequest(f"{path}: {exc}", param=path) from None
        if leaf.field and found is not None:
            fields[leaf.field] = found
        elif not leaf.field and found != leaf.default:
            others[path] = found
    return merged(others, joined(fields))


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Paths and values, the schema's own objects opened."""
    for key, part in value.items():
        path = f"{prefix}{key}"
        if says_nothing(part):
            continue
        if path not in _OBJECTS:
            yield path, part
        elif isinstance(part, Mapping):
            yield from _leaves(part, f"{path}.")
        else:
            raise InvalidRequest(f"{path}: must be an object", param=path)


def merged(fields: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """`said` over `fields`; a width or height in it takes the place of that side of a `size`."""
    both = {**fields, **said}
    if {"width", "height"} & said.keys() and "size" not in said and (text := both.pop("size", None)):
        size = parse_request({"size": text})[0].size
        if size is not None:
            both = {**both, "width": size[0], "height": size[1], **said}
    return both
