"""Weights to and from the GGUF files that sd.cpp loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from .network import CONTEXT, FINE, TABLE, Weights
from .pictures import Floats
from .text import Table
from .tokens import VOCABULARY

EMBEDDING = "text_encoders.llm.model.embed_tokens.weight"
NORM = "text_encoders.llm.model.norm.weight"
PREFIX = "model.diffusion_model."


def write_transformer(path: Path, weights: Weights, table: Table) -> None:
    """Matrices as Q8_0, those at the ends as F16, vectors as F32; tokens that mean nothing are zero."""
    vectors = np.zeros((VOCABULARY, CONTEXT), np.float32)
    for token, row in table.row.items():
        vectors[token] = table.vectors[row]
    for token, other in table.words.alike.items():
        vectors[token] = table.vectors[table.row[other]]
    tensors = {EMBEDDING: vectors, NORM: np.ones(CONTEXT, np.float32)}
    write(path, "ovis-image", tensors | {PREFIX + name: value for name, value in weights.items()})


def write(path: Path, architecture: str, tensors: Mapping[str, Floats]) -> None:
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in tensors.items():
        value = np.ascontiguousarray(value, np.float32)
        if value.ndim == 2 and not name.removeprefix(PREFIX).startswith(FINE):
            kind = TABLE if name == EMBEDDING else gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value.astype(np.float16) if value.ndim > 1 else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> dict[str, Floats]:
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        .reshape(tensor.shape[::-1])
        .astype(np.float32)
        for tensor in gguf.GGUFReader(str(path)).tensors
    }
