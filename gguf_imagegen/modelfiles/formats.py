"""Ways to quantise weights that the engine does not read: it would draw grey, or noise, without a word."""

from __future__ import annotations

import re
from collections.abc import Mapping

WORDS = "which the engine cannot read; take a GGUF quantisation, or the model in FP16 or BF16"

_MARKS = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (r"\.quant_state\.bitsandbytes__|\.(absmax|quant_map|nested_absmax)$", "NF4 or FP4 of bitsandbytes"),
        (r"\.SCB$", "INT8 of bitsandbytes"),
        (r"\.weight_scale_2$", "NVFP4"),
        (r"(^|\.)scaled_fp8$|\.scale_weight$", "scaled FP8"),
    )
)
_SCALE = re.compile(r"\.(weight_scale|comfy_quant)$")
_SCALED = {"F8_E4M3": "scaled FP8", "F8_E5M2": "scaled FP8", "I8": "INT8 with scales"}


def foreign_format(tensors: Mapping[str, str]) -> str:
    """In words, the format of a file's weights if the engine cannot read it; else empty.

    `tensors` are the types, as safetensors spells them, by name.
    """
    for mark, words in _MARKS:
        if any(mark.search(name) for name in tensors):
            return words
    scales = [name for name in tensors if _SCALE.search(name)]
    if any(tensors[name] == "F8_E8M0" for name in scales):
        return "MXFP8"
    for name in scales:
        kind = tensors.get(_SCALE.sub(".weight", name), "")
        if kind in _SCALED:
            return _SCALED[kind]
    return "a quantisation of ComfyUI" if scales else ""
