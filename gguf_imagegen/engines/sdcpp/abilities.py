"""What stable-diffusion.cpp can do: its samplers, schedules, upscalers and generators of noise, by name."""

from __future__ import annotations

from typing import Final

from gguf_imagegen.modelfiles.traits import FAMILIES
from gguf_imagegen.vocabulary.abilities import Abilities

# Each tuple is in the order of the C enum; `library.self_test` compares names with the library's.
SAMPLERS: Final = (
    "euler", "euler_a", "heun", "dpm2", "dpm++2s_a", "dpm++2m", "dpm++2mv2", "ipndm", "ipndm_v", "lcm",
    "ddim_trailing", "tcd", "res_multistep", "res_2s", "er_sde",
)  # fmt: skip
SCHEDULES: Final = (
    "discrete", "karras", "exponential", "ays", "gits", "sgm_uniform", "simple", "smoothstep", "kl_optimal",
    "lcm", "bong_tangent",
)  # fmt: skip
HIRES_UPSCALERS: Final = (
    "none", "latent", "latent_nearest", "latent_nearest_exact", "latent_antialiased", "latent_bicubic",
    "latent_bicubic_antialiased", "lanczos", "nearest", "model",
)  # fmt: skip
RNGS: Final = ("std_default", "cuda", "cpu")
DEFAULT_SCHEDULE: Final = "default"
"""The schedule that sd.cpp thinks best for a sampler."""
VARIATIONS: Final = "sd_set_variation"
"""The function that one of our patches adds."""
ABILITIES: Final = Abilities(
    samplers=SAMPLERS,
    schedules=(DEFAULT_SCHEDULE, *SCHEDULES),
    families=tuple(FAMILIES),
    upscalers=tuple(name for name in HIRES_UPSCALERS if name not in ("none", "model")),
    tasks=("generate", "upscale", "convert", "edges"),
    variations=True,
)
"""Of a library with our patches (scripts/engine/hooks)."""
