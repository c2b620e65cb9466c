"""Fields of ours that several native ones of sd.cpp make up, or that are said in another way."""

from __future__ import annotations

from typing import Any

from gguf_imagegen.vocabulary.errors import InvalidRequest

STRENGTH, HIRES_SCALE = 0.75, 2.0
"""sd.cpp's defaults."""
CACHE_OPTIONS = {
    "start": "start_percent", "end": "end_percent", "decay": "error_decay_rate",
    "relative": "use_relative_threshold", "reset": "reset_error_on_compute", "fn": "Fn_compute_blocks",
    "bn": "Bn_compute_blocks", "warmup": "max_warmup_steps", "w": "spectrum_w", "m": "spectrum_m",
    "lam": "spectrum_lam", "window": "spectrum_window_size", "flex": "spectrum_flex_window",
    "stop": "spectrum_stop_percent",
}  # fmt: skip
"""What `cache_option` calls fields of `sd_cache_params_t` (`initialize_cache_params`)."""


def joined(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with names such as `hires.scale` put together.

    The default compression of 100 means the best quality; of a PNG it would be hard work for nothing.
    """
    images = [fields.pop("init_image")] if "init_image" in fields else []
    if images := images + fields.pop("ref_images", []):
        fields["image"] = images
    elif fields.get("strength") == STRENGTH:
        del fields["strength"]  # the page of sd.cpp's server always sends it
    if True in [lora.pop("is_high_noise") for lora in fields.get("lora", ())]:
        fields["lora[].is_high_noise"] = True
    if fields.get("output_compression") == 100 and fields.get("output_format") not in ("jpeg", "webp"):
        del fields["output_compression"]
    hires = _taken(fields, "hires.")
    if hires.pop("enabled", False) and hires.get("upscaler", "").strip().lower() != "none":
        fields["hires"] = _sized(hires) or {"scale": HIRES_SCALE}
    _cache(fields)
    _tiles(fields)
    return fields


def _taken(fields: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): fields.pop(name) for name in list(fields) if name.startswith(prefix)}


def _sized(hires: dict[str, Any]) -> dict[str, Any]:
    """As sd.cpp's resolve_hires has it: one target side alone is both, and targets go before the scale."""
    width = hires.get("width") or hires.get("height")
    if width:
        hires.pop("scale", None)
        hires |= {"width": width, "height": hires.get("height") or width}
    return hires


def _cache(fields: dict[str, Any]) -> None:
    """`cache_option` is a text such as `threshold=0.25,warmup=4`; without a mode all of it says nothing."""
    said, mode = _taken(fields, "cache."), fields.get("step_cache")
    text, options = said.pop("option", ""), {name: value for name, value in said.items() if value is not True}
    for part in filter(None, text.split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        key = CACHE_OPTIONS.get(name.lower())
        if not equals or (key is None and name != "threshold"):
            names = ", ".join(("threshold", *CACHE_OPTIONS))
            raise InvalidRequest(
                f"cache_option: {part[:60]!r} must be NAME=VALUE; names: {names}", param="cache_option"
            )
        if name == "threshold":
            fields["step_cache_threshold"] = value
        elif key is not None:
            options["spectrum_warmup_steps" if mode == "spectrum" and name == "warmup" else key] = value
    if mode in (None, "none", "disabled"):
        fields.pop("step_cache_threshold", None)
    elif options:
        fields["step_cache_options"] = options


def _tiles(fields: dict[str, Any]) -> None:
    """One side alone is both; the default overlap leaves it to us, as a side of 0 does."""
    tiles = _taken(fields, "tiles.")
    if not fields.get("vae_tiling"):
        return
    if sides := [tiles[side] for side in ("x", "y") if side in tiles]:
        fields["vae_tile_size"] = f"{sides[0]}x{sides[-1]}"
    if tiles.get("overlap") not in (None, 0.5):
        fields["vae_tile_overlap"] = tiles["overlap"]
