"""Weights to and from the two GGUF files that sd.cpp loads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch

from . import captions
from .autoencoder import Decoder, encoder_tensors
from .latents import Encoder
from .transformer import CONTEXT, Transformer

VOCABULARY = 151_936  # Qwen's
EMBEDDING = "text_encoders.llm.model.embed_tokens.weight"
NORM = "text_encoders.llm.model.norm.weight"
PREFIX = "model.diffusion_model."
DECODER, ENCODER = "tae.decoder.layers.", "tae.encoder.layers."
FINE = ("img_in", "txt_in", "time_in", "final_layer")  # small and at the ends: kept as F16


def write_transformer(path: Path, model: Transformer, tokens: list[int]) -> None:
    """Matrices as Q8_0, those at the ends as F16, vectors as F32.

    Tokens that were never trained are zero, but for those that are other forms of a trained word.
    """
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    table = np.zeros((VOCABULARY, CONTEXT), np.float32)
    vectors = tensors.pop("embed_tokens.weight")
    for token, vector in zip(tokens, vectors, strict=True):
        table[list(captions.kin(token))] = vector
    table[tokens] = vectors
    named = {EMBEDDING: table, NORM: tensors.pop("text_norm.scale")}
    _write(path, "ovis-image", named | {PREFIX + name: value for name, value in tensors.items()})


def read_transformer(path: Path, model: Transformer, tokens: list[int]) -> None:
    """Weights of an exported file into a model of the same sizes, to go on training."""
    tensors = _read(path)
    state = {"embed_tokens.weight": tensors.pop(EMBEDDING)[tokens], "text_norm.scale": tensors.pop(NORM)}
    _load(model, state | {name.removeprefix(PREFIX): value for name, value in tensors.items()})


def write_autoencoder(path: Path, encoder: Encoder, decoder: Decoder) -> None:
    """Convolutions as F16, biases as F32."""
    layers = {
        DECODER + name.removeprefix("layers."): v.detach().numpy() for name, v in decoder.state_dict().items()
    }
    _write(
        path, "taesd", {ENCODER + name: value for name, value in encoder_tensors(encoder).items()} | layers
    )


def read_decoder(path: Path, decoder: Decoder) -> None:
    tensors = {name: value for name, value in _read(path).items() if name.startswith(DECODER)}
    _load(decoder, {f"layers.{name.removeprefix(DECODER)}": value for name, value in tensors.items()})


def _write(path: Path, architecture: str, tensors: Mapping[str, np.ndarray]) -> None:
    writer = gguf.GGUFWriter(str(path), architecture)
    q8 = gguf.GGMLQuantizationType.Q8_0
    for name, value in tensors.items():
        value = np.ascontiguousarray(value)
        if value.ndim == 2 and not name.removeprefix(PREFIX).startswith(FINE):
            writer.add_tensor(name, gguf.quantize(value, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, value.astype(np.float16) if value.ndim > 1 else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(path: Path) -> dict[str, np.ndarray]:
    tensors = gguf.GGUFReader(str(path)).tensors
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type)
        .reshape(tensor.shape[::-1])
        .astype(np.float32)
        for tensor in tensors
    }


def _load(model: torch.nn.Module, state: Mapping[str, np.ndarray]) -> None:
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state.items()})
