"""What each model family of sd.cpp needs and can do, as far as requests must know it.

Size multiples, edit modes and the schedules that break are facts of sd.cpp's source, see `docs/engine.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gguf_imagegen.vocabulary.engine import StepCache

EditMode = Literal["img2img", "inpaint", "reference", "control"]
"""How an image that comes with the prompt is used; of "control" it holds the edges or the depth to follow."""


_UNET_MULTIPLE = 64


@dataclass(frozen=True)
class Traits:
    """`multiple`: sizes are aligned up to it. `distilled_guidance`: "guidance_scale" means `guidance`.

    `true_cfg`: "guidance_scale" means nothing, CFG is "true_cfg_scale" alone, as diffusers has it.
    `video_vae`: that of Wan, whose tiny twin decodes but cannot encode.
    `latent_preview`: sd.cpp knows a linear latent-to-RGB projection, so `proj` previews cost nothing.
    `max_side`: the longest side, where sd.cpp has one. `references`: images that an edit by reference takes.
    """

    multiple: int
    edit_mode: EditMode = "img2img"
    distilled_guidance: bool = False
    true_cfg: bool = False
    ays: bool = False
    max_side: int | None = None
    video_vae: bool = False
    latent_preview: bool = True
    references: int = 16
    defaults: Mapping[str, object] = field(default_factory=dict)

    @property
    def step_caches(self) -> tuple[StepCache, ...]:
        """Those that sd.cpp has for the kind of network, which the multiple of its sizes tells."""
        if self.multiple == _UNET_MULTIPLE:
            return ("none", "ucache", "spectrum")
        return ("none", "easycache", "dbcache", "taylorseer", "cache-dit", "spectrum")


_SD = Traits(64, ays=True, defaults={"steps": 20, "sampler": "euler_a", "cfg_scale": 7.0})
_SDXL = Traits(
    64, ays=True, defaults={"size": "1024x1024", "steps": 25, "sampler": "euler_a", "cfg_scale": 7.0}
)
_FLOW = {"size": "1024x1024", "sampler": "euler", "cfg_scale": 1.0}
_FLUX = Traits(16, distilled_guidance=True, defaults={**_FLOW, "steps": 20})
_WHOLE = {"strength": 1.0}  # inpainting models repaint the mask from pure noise

REFUSED: Mapping[str, str] = {
    "flex-2": "Flex.2, which aborts the engine of this version at its first step",
    "svd": "Stable Video Diffusion, which makes videos",
    "wan": "Wan, which makes videos",
    "hunyuan-video": "HunyuanVideo or HunyuanImage, which the engine does not know",
    "lumina-2": "Lumina 2, which the engine does not know",
    "sdxl-refiner": "SDXL's refiner, which the engine cannot load",
}
"""Families that are known by their tensors and cannot be run, in words."""
FAMILIES: Mapping[str, Traits] = {
    "sd1": _SD,
    "sd1-inpaint": Traits(64, "inpaint", ays=True, defaults={**_SD.defaults, **_WHOLE}),
    "sd1-pix2pix": Traits(64, "reference", ays=True, references=1, defaults=_SD.defaults),
    "sdxl-pix2pix": Traits(64, "reference", ays=True, references=1, defaults=_SDXL.defaults),
    "sd2": Traits(64, defaults=_SD.defaults),
    "sd2-inpaint": Traits(64, "inpaint", defaults={**_SD.defaults, **_WHOLE}),
    "sdxl": _SDXL,
    "sdxl-inpaint": Traits(64, "inpaint", ays=True, defaults={**_SDXL.defaults, **_WHOLE}),
    "sd3": Traits(16, max_side=3072, defaults={**_FLOW, "steps": 28, "cfg_scale": 4.5}),
    "flux": _FLUX,
    "flux-fill": Traits(16, "inpaint", distilled_guidance=True, defaults={**_FLUX.defaults, **_WHOLE}),
    "flux-controls": Traits(
        16, "control", distilled_guidance=True, defaults={**_FLUX.defaults, "steps": 30, "guidance": 10.0}
    ),
    "flux2": Traits(16, "reference", distilled_guidance=True, defaults={**_FLOW, "steps": 4}),
    "chroma": Traits(16, defaults={**_FLOW, "steps": 26, "cfg_scale": 4.0}),
    "chroma-radiance": Traits(32, latent_preview=False, defaults={**_FLOW, "steps": 26, "cfg_scale": 4.0}),
    "ovis-image": Traits(16, defaults={**_FLOW, "steps": 20, "cfg_scale": 5.0}),
    "qwen-image": Traits(
        16, true_cfg=True, video_vae=True, defaults={**_FLOW, "steps": 50, "cfg_scale": 4.0}
    ),
    "z-image": Traits(16, defaults={**_FLOW, "steps": 9}),
    "anima": Traits(16, video_vae=True, defaults={**_FLOW, "steps": 30, "cfg_scale": 6.0}),
    "ernie-image": Traits(16, defaults={**_FLOW, "steps": 30, "cfg_scale": 5.0}),
}


def traits_of(family: str) -> Traits | None:
    """The traits of a family, None if this server cannot run it."""
    return FAMILIES.get(family)
