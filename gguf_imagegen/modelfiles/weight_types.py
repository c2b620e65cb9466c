"""Weights that are converted while they are loaded: of which files, and what their headers would be then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gguf_imagegen.modelfiles.header import Header, TensorInfo
from gguf_imagegen.vocabulary.engine import Role, WeightType

QUANTIZED: Final = frozenset(kind.name for kind, (block, _) in GGML_QUANT_SIZES.items() if block > 1)
_KEPT: Final = (
    "img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.", "x_embedder.",
    "t_embedder.", "y_embedder.", "pos_embed", "context_embedder.", "time_embed.", "label_emb.", "embedding",
)  # fmt: skip
"""Parts of names whose tensors keep their type (`tensor_should_be_converted` in model.cpp)."""


def loaded_as(files: Mapping[Role, Header], wanted: WeightType | None) -> WeightType | None:
    """The type to convert to; None for a model that is quantised: it would lose twice."""
    main = files.get("diffusion") or files.get("model")
    if wanted is None or main is None:
        return None
    quantized = sum(share for kind, share in main.quantization.items() if kind in QUANTIZED)
    return None if quantized > 0.5 else wanted


def as_loaded(files: Mapping[Role, Header], kind: WeightType | None) -> dict[Role, Header]:
    """These headers as if the files had the types of what is in memory."""
    if kind is None:
        return dict(files)
    return {
        role: replace(header, tensors={name: _as(t, kind) for name, t in header.tensors.items()})
        for role, header in files.items()
    }


def _as(tensor: TensorInfo, kind: WeightType) -> TensorInfo:
    name = kind.upper()
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    kept = tensor.name.endswith((".bias", ".scale")) or any(part in tensor.name for part in _KEPT)
    if kept or len(tensor.shape) < 2 or tensor.shape[-1] % block:
        return tensor
    return replace(tensor, type=name, nbytes=math.prod(tensor.shape) // block * size)
