"""What sd.cpp's `GET /sdcpp/v1/capabilities` says (routes_sdcpp.cpp has the shape), of a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_imagegen.api.dialects.sdcpp.request import LEAVES
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.addons import names_in
from gguf_imagegen.planning.bounds import LEAST_SIDE, Bounds
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities

OUTPUT_FORMATS = ("png", "jpeg", "webp")
NOT_DEFAULTS = ("init_image", "ref_images", "mask_image", "control_image", "lora")
"""What a request may hold and the capabilities state no default of."""


def capabilities_of(entry: Entry, settings: Settings, able: Abilities) -> dict[str, Any]:
    """sd.cpp's capabilities object for a model. Reads folders: call it in a thread."""
    formats, defaults, features = list(OUTPUT_FORMATS), _defaults(entry, settings), _features(entry, settings)
    upscalers = ["None", *map(_label, able.upscalers), *names_in(settings.upscaler_dir, "upscaler")]
    return {
        "model": _model(entry),
        "current_mode": "img_gen",
        "supported_modes": ["img_gen"],
        "defaults": defaults,
        "defaults_by_mode": {"img_gen": defaults},
        "limits": _limits(entry, settings),
        "samplers": list(able.samplers),
        "schedulers": [
            name for name in able.schedules if name != "default" and (name != "ays" or entry.traits.ays)
        ],
        "output_formats": formats,
        "output_formats_by_mode": {"img_gen": formats},
        "features": features,
        "features_by_mode": {"img_gen": features},
        "loras": [{"name": name, "path": name} for name in names_in(settings.lora_dir, "lora")],
        "upscalers": [{"name": name} for name in upscalers],
    }


def _label(upscaler: str) -> str:
    """ "Latent (nearest-exact)" for "latent_nearest_exact", as sd.cpp's server and AUTOMATIC1111 write it."""
    first, _, rest = upscaler.replace("nearest_exact", "nearest-exact").partition("_")
    return f"{first.capitalize()} ({rest.replace('_', ' ')})" if rest else first.capitalize()


def _model(entry: Entry) -> dict[str, str]:
    """The main file's bare name where sd.cpp has its path; `id` is what a request's `model` may be."""
    main = next(iter(entry.files.values()), None)
    name, stem = (main.name, main.stem) if main else (entry.id, entry.id)
    return {"name": name, "stem": stem, "path": name, "id": entry.id, "family": entry.family}


def _defaults(entry: Entry, settings: Settings) -> dict[str, Any]:
    """What a request that says nothing gets; sending it back changes nothing."""
    known = entry.defaults.model_dump(exclude={"size"})
    known["steps"] = min(known["steps"], Bounds.of(entry, settings).steps)
    return _native_defaults({**known, "width": entry.defaults.size[0], "height": entry.defaults.size[1]})


def _limits(entry: Entry, settings: Settings) -> dict[str, int]:
    bounds = Bounds.of(entry, settings)
    return {
        "min_width": LEAST_SIDE,
        "max_width": bounds.side,
        "min_height": LEAST_SIDE,
        "max_height": bounds.side,
        "max_pixels": bounds.pixels,
        "max_batch_count": settings.max_images,
        "max_queue_size": settings.max_queue,
    }


def _features(entry: Entry, settings: Settings) -> dict[str, bool]:
    can = set(entry.capabilities)
    return {
        "init_image": bool(can & {"image-to-image", "reference-edit"}),
        "mask_image": bool(can & {"inpainting", "reference-edit"}),
        "control_image": "control_net" in entry.files,
        "ref_images": "reference-edit" in can,
        "lora": settings.lora_dir is not None,
        "vae_tiling": True,
        "hires": True,
        "cache": True,
        "cancel_queued": True,
        "cancel_generating": True,
    }


def _native_defaults(known: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults as one native object, with what is `known` better by canonical name."""
    tree: dict[str, Any] = {}
    for path, leaf in LEAVES.items():
        if path not in NOT_DEFAULTS:
            *parents, name = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = known.get(leaf.field, leaf.default)
    return tree
