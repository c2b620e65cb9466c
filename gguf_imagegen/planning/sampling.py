"""How the sampler runs for a request: steps, schedule and guidance, lowered or refused if a model cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.bounds import Bounds
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.engine import StepCache
from gguf_imagegen.vocabulary.errors import InvalidRequest

_NEXT_QUALITY = {"standard": "medium", "hd": "high", "max": "xhigh", "xhigh": "high"}
"""What a quality means for a model that has no preset of this name."""


def steps(request: ImageRequest, entry: Entry, settings: Settings, notes: list[str]) -> int:
    """As asked; else by quality or the model's own, and then never more than this server makes."""
    presets: dict[str, int] = {str(key): steps for key, steps in entry.quality.items()}
    quality: str = request.quality or ""
    while quality not in presets and quality in _NEXT_QUALITY:
        quality = _NEXT_QUALITY[quality]
    if request.custom_sigmas:
        return _steps_of(request, entry, settings, notes)
    if request.steps:
        return checked_steps(request.steps, entry, settings, "steps", notes)
    return min(presets.get(quality, entry.defaults.steps), Bounds.of(entry, settings).steps)


def _steps_of(request: ImageRequest, entry: Entry, settings: Settings, notes: list[str]) -> int:
    """Those between the noise levels of the request, none of which can be left out."""
    wanted = len(request.custom_sigmas) - 1
    if request.steps not in (None, wanted):
        notes.append(f"steps: custom_sigmas of {wanted + 1} values are {wanted} steps")
    if checked_steps(wanted, entry, settings, "custom_sigmas", []) < wanted:
        most = Bounds.of(entry, settings).steps
        raise InvalidRequest(
            f"custom_sigmas: {entry.id} takes at most {most + 1} values", param="custom_sigmas"
        )
    return wanted


def checked_steps(steps: int, entry: Entry, settings: Settings, param: str, notes: list[str]) -> int:
    """More than the server makes is refused; more than the model takes is lowered: many send 20 to all."""
    if steps > settings.max_steps:
        raise InvalidRequest(
            f"{param}: {steps} steps are too many; this server makes at most {settings.max_steps}",
            param=param,
        )
    if steps < settings.min_steps:
        raise InvalidRequest(
            f"{param}: {steps} steps are too few; this server makes at least {settings.min_steps}",
            param=param,
        )
    most = Bounds.of(entry, settings).steps
    if steps > most:
        notes.append(f"{param}: {entry.id} takes at most {most} steps; {steps} were lowered to {most}")
    return min(steps, most)


def schedule(
    request: ImageRequest, entry: Entry, able: Abilities, fewest_steps: int, notes: list[str]
) -> str:
    """As asked; what this family or so few steps cannot have becomes the model's own, with a note."""
    models_own = own(entry.defaults.schedule, able.schedules)
    asked = request.schedule or models_own
    why = _unusable(asked, entry, fewest_steps)
    if why is None:
        return asked
    rest = (models_own, *sorted(able.schedules, key=lambda name: name != "default"))
    used = next(each for each in rest if _unusable(each, entry, fewest_steps) is None)
    notes.append(f"schedule: {why}; {used!r} was used")
    return used


def _unusable(schedule: str, entry: Entry, steps: int) -> str | None:
    if schedule == "ays" and not entry.traits.ays:
        return f"'ays' is defined for SD 1.x and SDXL only, {entry.id} is {entry.family}"
    if steps < 2 and schedule in ("gits", "karras", "exponential"):
        return f"{schedule!r} needs at least 2 steps"
    return None


def own(default: str, able: Sequence[str]) -> str:
    """The model's own, if the engine has it, else the engine's first."""
    return default if default in able or not able else able[0]


def step_cache(request: ImageRequest, entry: Entry, notes: list[str]) -> StepCache:
    """As asked; without one that the family cannot have, as sd.cpp goes on, too."""
    cache = request.step_cache or entry.defaults.step_cache
    if cache in entry.traits.step_caches:
        return cache
    notes.append(
        f"step_cache: {entry.id} cannot have {cache!r}, only {', '.join(entry.traits.step_caches)};"
        " all steps were made"
    )
    return "none"


def step_cache_options(
    request: ImageRequest, cache: StepCache, notes: list[str]
) -> Mapping[str, bool | int | float | str]:
    """As asked; sd.cpp turns a cache off whose range is empty."""
    asked = request.step_cache_options
    options = asked.model_dump(exclude_none=True) if asked else {}
    if options and cache == "none":
        notes.append("step_cache_options: have no effect without step_cache")
        return {}
    if options.get("start_percent", 0.15) >= options.get("end_percent", 0.95):
        raise InvalidRequest(
            "step_cache_options: start_percent (0.15) must be below end_percent (0.95)",
            param="step_cache_options",
        )
    return options


def shifted_timestep(request: ImageRequest, entry: Entry, notes: list[str]) -> int:
    """Only SDXL has been distilled so (NitroSD)."""
    if request.shifted_timestep and not entry.family.startswith("sdxl"):
        notes.append(f"shifted_timestep: has no effect on {entry.id}, only on SDXL")
        return 0
    return request.shifted_timestep


def guidance(request: ImageRequest, entry: Entry, notes: list[str]) -> tuple[float, float, float]:
    """cfg_scale, image_cfg_scale and distilled guidance; `guidance_scale` is the last where there is one.

    Where CFG is `true_cfg_scale` alone, `guidance_scale` does nothing, and 1 is its default.

    A model draws garbage above its own greatest cfg_scale, so that a larger one is lowered, with a note.
    """
    cfg_scale, guidance = request.cfg_scale, request.guidance
    if request.guidance_scale is not None:
        if entry.traits.true_cfg:
            if request.guidance_scale != 1:
                notes.append(f"guidance_scale: has no effect on {entry.id}; its CFG is true_cfg_scale")
        elif entry.traits.distilled_guidance:
            guidance = request.guidance_scale if guidance is None else guidance
        else:
            cfg_scale = request.guidance_scale if cfg_scale is None else cfg_scale
    most = entry.limits.cfg_scale
    if most is not None and cfg_scale is not None and cfg_scale > most:
        notes.append(f"cfg_scale: {entry.id} takes at most {most:g}; {cfg_scale:g} was lowered to that")
        cfg_scale = most
    cfg_scale = entry.defaults.cfg_scale if cfg_scale is None else _raised(cfg_scale, "cfg_scale", notes)
    image_cfg_scale = request.image_cfg_scale
    return (
        cfg_scale,
        cfg_scale if image_cfg_scale is None else _raised(image_cfg_scale, "image_cfg_scale", notes),
        entry.defaults.guidance if guidance is None else guidance,
    )


def _raised(scale: float, name: str, notes: list[str]) -> float:
    """Below 1 everybody means "no guidance", which is 1; at 0 sd.cpp would draw the negative prompt alone."""
    if scale < 1:
        notes.append(f"{name}: {scale:g} means no guidance; 1 was used")
    return max(scale, 1.0)
