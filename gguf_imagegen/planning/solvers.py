"""Samplers as other programs name them: another spelling, or the nearest to one that is not here.

Those are the samplers of stable-diffusion-webui (modules/sd_samplers_*.py) and ComfyUI (comfy/samplers.py)
that sd.cpp lacks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NEAREST: Mapping[str, str] = {
    "eulerancestral": "euler_a",
    "dpm++sde": "dpm++2s_a",
    "dpm++2msde": "dpm++2m",
    "dpm++2msdeheun": "dpm++2m",
    "dpm++3msde": "dpm++2m",
    "unipc": "dpm++2m",
    "unipcbh2": "dpm++2m",
    "dpmfast": "dpm++2m",
    "dpmadaptive": "dpm++2m",
    "dpm2a": "dpm2",
    "dpm2ancestral": "dpm2",
    "heunpp2": "heun",
    "restart": "heun",
    "plms": "ipndm",
    "lms": "ipndm",
    "ddpm": "euler_a",
    "ddim": "ddim_trailing",
    "ddimcfg++": "ddim_trailing",
}
"""By key: of the same order and as random, as far as there is one; linear multistep ones become iPNDM."""
MODELS_OWN = ("default", "auto", "automatic")
"""Names that leave it to the model, as keys."""


def key_of(name: str) -> str:
    """Spaces, underscores and case do not count, nor k-diffusion's prefix: "k_dpmpp_2m" is "dpm++2m"."""
    bare = re.sub(r"^(sample_)?k_", "", name.strip().lower())
    return re.sub(r"[^a-z0-9+]", "", bare.replace("dpmpp", "dpm++").removesuffix("_gpu"))


def stand_in_note(param: str, name: str, used: str) -> str:
    return f"{param}: {name[:60]!r} is not known here; {used!r}, the nearest to it, was used"


def models_own_note(param: str, name: str) -> str:
    return f"{param}: {name[:60]!r} means the model's own"
