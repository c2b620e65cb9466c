"""AUTOMATIC1111's names of samplers and schedulers, and LoRA tags, in the words of this server.

The display names are those of stable-diffusion-webui (modules/sd_samplers_kdiffusion.py,
modules/sd_schedulers.py) and of its fork Forge. Pure functions.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gguf_imagegen.planning.solvers import MODELS_OWN, NEAREST, key_of
from gguf_imagegen.vocabulary.errors import UnknownSampler

SAMPLERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "euler_a": ("Euler a", ("k_euler_a",)),
    "euler": ("Euler", ("k_euler",)),
    "heun": ("Heun", ("k_heun",)),
    "dpm2": ("DPM2", ("k_dpm_2",)),
    "dpm++2s_a": ("DPM++ 2S a", ("k_dpmpp_2s_a",)),
    "dpm++2m": ("DPM++ 2M", ("k_dpmpp_2m",)),
    "dpm++2mv2": ("DPM++ 2M v2", ("k_dpmpp_2m_v2",)),
    "ipndm": ("IPNDM", ("k_ipndm",)),
    "ipndm_v": ("IPNDM_V", ("k_ipndm_v",)),
    "lcm": ("LCM", ("k_lcm",)),
    "ddim_trailing": ("DDIM", ("ddim",)),
    "tcd": ("TCD", ("k_tcd",)),
    "res_multistep": ("Res Multistep", ("k_res_multistep",)),
    "res_2s": ("Res 2S", ("k_res_2s",)),
    "er_sde": ("ER SDE", ("k_er_sde",)),
}
"""Label and aliases of each sampler of ours."""

SCHEDULES: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "discrete": ("normal", "Normal", ("uniform",)),
    "karras": ("karras", "Karras", ()),
    "exponential": ("exponential", "Exponential", ()),
    "ays": ("align_your_steps", "Align Your Steps", ()),
    "gits": ("align_your_steps_GITS", "Align Your Steps GITS", ()),
    "sgm_uniform": ("sgm_uniform", "SGM Uniform", ()),
    "simple": ("simple", "Simple", ()),
    "smoothstep": ("smoothstep", "Smoothstep", ("beta",)),
    "kl_optimal": ("kl_optimal", "KL Optimal", ()),
    "lcm": ("lcm", "LCM", ()),
    "bong_tangent": ("bong_tangent", "Bong Tangent", ()),
    "default": ("default", "Default", ()),
}
"""Name, label and aliases of each schedule of ours.

"Beta" spends its steps at both ends of the noise as "smoothstep" does; nothing else here comes as near.
"""
AUTOMATIC = ("", "none", "usesamescheduler", "usesamesampler", *MODELS_OWN)
"""What means "as the model likes it", as a key."""
_SAMPLER_OF = {
    key_of(name): ours for ours, (label, aliases) in SAMPLERS.items() for name in (ours, label, *aliases)
}
_SCHEDULE_OF = {
    key_of(name): ours
    for ours, (code, label, aliases) in SCHEDULES.items()
    for name in (ours, code, label, *aliases)
}
_SUFFIXES = sorted([*_SCHEDULE_OF.items(), ("ka", "karras")], key=lambda pair: -len(pair[0]))


def sampler_of(name: str, able: Collection[str] = ()) -> tuple[str | None, str | None]:
    """Our sampler, and the schedule that the name ends with ("DPM++ 2M Karras"); None = not said.

    A name that the engine is `able` to do needs no label here, and a sampler that it lacks becomes the
    nearest one. Raises UnknownSampler with the valid labels and the nearest one.
    """
    key, schedule = _parted(name)
    if key in AUTOMATIC:
        return None, None
    if name.lower() in able:
        return name.lower(), None
    if sampler := _SAMPLER_OF.get(key) or NEAREST.get(key):
        return sampler, schedule
    raise _unknown("sampler", name, [label for label, _ in SAMPLERS.values()], "sampler_name")


def is_stand_in(name: str) -> bool:
    """Whether `sampler_of` gives another sampler than this name means."""
    return _parted(name)[0] not in _SAMPLER_OF


def _parted(name: str) -> tuple[str, str | None]:
    """The key of a sampler, and the schedule that its name ends with."""
    key = key_of(name)
    if key in _SAMPLER_OF or key in NEAREST:
        return key, None
    for suffix, schedule in _SUFFIXES:
        bare = key.removesuffix(suffix)
        if bare != key and (bare in _SAMPLER_OF or bare in NEAREST):
            return bare, schedule
    return key, None


def schedule_of(name: str) -> str | None:
    """Our schedule; None = the model's own. Raises UnknownSampler as `sampler_of` does."""
    key = key_of(name)
    if key in AUTOMATIC and key != "default":
        return None
    if key in _SCHEDULE_OF:
        return _SCHEDULE_OF[key]
    labels = ["Automatic", *(label for _, label, _ in SCHEDULES.values())]
    raise _unknown("scheduler", name, labels, "scheduler")


def sampler_label(ours: str) -> str:
    return SAMPLERS[ours][0] if ours in SAMPLERS else ours


def schedule_label(ours: str) -> str:
    return SCHEDULES[ours][1] if ours in SCHEDULES else ours


def _unknown(kind: str, name: str, labels: list[str], param: str) -> UnknownSampler:
    by_key = {label.lower(): label for label in labels}
    near = difflib.get_close_matches(name[:60].lower(), by_key, n=1, cutoff=0.5)
    hint = f"; did you mean {by_key[near[0]]!r}?" if near else "."
    return UnknownSampler(
        f"{param}: unknown {kind} {name[:60]!r}{hint} Valid: {', '.join(labels)}", param=param
    )


_TAG = re.compile(r"<(?:lora|lyco):([^<>]{1,300})>")
_WEIGHT = re.compile(r"[+-]?(?:\d{1,3}(?:\.\d{0,9})?|\.\d{1,9})")
MAX_WEIGHT = 10.0
MAX_WEIGHTS = 4
"""Fields after a name, as A1111 has them: text encoder, U-Net, rank, and words such as `unet=0.5`."""


def take_loras(prompt: str, known: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without `<lora:NAME:WEIGHT>` tags of known LoRAs, and these as items of the field `lora`.

    `<lyco:…>` means the same. Of two weights, the text encoder's and the U-Net's, the second counts: the
    engine has one. A file in a folder may be named without the folder. A tag of an unknown name or without a
    plain weight stays in the prompt, whose cleaner removes it and says so. Tags of one name add up, as in
    sd.cpp's own server.
    """
    found: dict[str, float] = {}
    bare = _bare_names(known)

    def take(match: re.Match[str]) -> str:
        name, weight = _said(match[1], {**bare, **{each: each for each in known}})
        if name not in known or not _WEIGHT.fullmatch(weight) or abs(float(weight)) > MAX_WEIGHT:
            return match[0]
        found[name] = found.get(name, 0.0) + float(weight)
        return ""

    text = _TAG.sub(take, prompt)
    return text, [{"name": name, "scale": scale} for name, scale in found.items()]


def _bare_names(known: Collection[str]) -> dict[str, str]:
    """Names in folders by what stands after the last slash, where that is one file's alone."""
    ends = Counter(name.rpartition("/")[2] for name in known)
    return {end: name for name in known if ends[end := name.rpartition("/")[2]] == 1}


def _said(tag: str, known: Mapping[str, str]) -> tuple[str, str]:
    """Name and weight of a tag; a name may itself have a colon, or blanks at its ends."""
    parts = tag.split(":")
    for count in range(len(parts), 0, -1):
        name, said = ":".join(parts[:count]), [part.strip() for part in parts[count:]]
        for spelling in (name, name.strip()):
            if spelling in known and len(said) <= MAX_WEIGHTS:
                return known[spelling], _weight(said)
    return tag, ""


def _weight(said: Sequence[str]) -> str:
    """Of what follows the name: one weight, or that of the text encoder and that of the U-Net."""
    named = dict(part.split("=", 1) for part in said if "=" in part)
    plain = [part for part in said if "=" not in part]
    return named.get("unet") or (plain[1] if len(plain) > 1 else plain[0] if plain else "1")
