"""Options of the engine that are left to what it computes on where nobody has said anything of them."""

from __future__ import annotations

from typing import Final, TypedDict

from gguf_imagegen.settings import Settings

MASKED: Final = ("chroma",)
"""Families whose attention is masked, which flash attention leaves out: it would change their pictures."""


class OpenOptions(TypedDict):
    """Fields of `LoadSpec`; None is for `LoadSpec.settled` to decide."""

    flash_attention: bool | None
    diffusion_conv_direct: bool | None
    vae_conv_direct: bool | None


def open_options(family: str, settings: Settings) -> OpenOptions:
    """As the settings say; a masked family has no flash attention unless they do."""
    said = settings.model_fields_set
    unsaid = False if family.startswith(MASKED) else None
    return OpenOptions(
        flash_attention=settings.flash_attention if "flash_attention" in said else unsaid,
        diffusion_conv_direct=settings.diffusion_conv_direct if "diffusion_conv_direct" in said else None,
        vae_conv_direct=settings.vae_conv_direct if "vae_conv_direct" in said else None,
    )
