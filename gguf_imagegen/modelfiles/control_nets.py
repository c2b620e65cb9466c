"""ControlNets: which models a file is for, and whether sd.cpp can load it (`control.hpp` there).

It has the names of the original files, one colour hint of three channels, and convolutions around the
attention, which SD1 alone has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from gguf_imagegen.modelfiles.header import Header, TensorInfo

FAMILY_OF: Final[Mapping[int, str]] = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""By the width of the text that it reads."""
_PREFIX: Final = "control_model."
_PARTS: Final = ("input_hint_block.0.weight", "zero_convs.0.0.weight", "middle_block_out.0.weight")


def control_family(header: Header) -> str | None:
    """For which models it is, None if the file does not tell."""
    keys = (tensor for name, tensor in header.tensors.items() if name.endswith("attn2.to_k.weight"))
    first = next(keys, None)
    return FAMILY_OF.get(first.shape[-1]) if first is not None and first.shape else None


def control_fault(header: Header) -> str:
    """Why the engine cannot load it, in words that follow its name; empty if it can."""
    if header.has("controlnet_cond_embedding"):
        return "has diffusers' names of tensors, which the engine does not know; take the original file"
    if header.has("lora_controlnet"):
        return "is a Control-LoRA, which the engine cannot apply"
    tensors = {name.removeprefix(_PREFIX): tensor for name, tensor in header.tensors.items()}
    if missing := [name for name in _PARTS if name not in tensors]:
        return f"lacks {missing[0]!r}, which a ControlNet has"
    if _channels(tensors["input_hint_block.0.weight"]) != 3:
        return "does not take a picture of three colours"
    inwards = [tensor for name, tensor in tensors.items() if name.endswith("1.proj_in.weight")]
    if control_family(header) is None or any(len(tensor.shape) != 4 for tensor in inwards):
        return "cannot be loaded: this engine knows the ControlNets of SD1 only"
    return ""


def _channels(tensor: TensorInfo) -> int:
    return tensor.shape[1] if len(tensor.shape) == 4 else 0


def is_whole_unet(header: Header) -> bool:
    """Models distilled by leaving out blocks have none in the middle, to which a ControlNet adds."""
    return header.has("middle_block.1.") or header.has("mid_block.")
