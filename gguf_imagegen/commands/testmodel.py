"""A tiny model with random weights that the real engine loads, so that tests need no network.

It is an Ovis-Image (a Flux variant whose sizes sd.cpp takes from the tensors, `flux.hpp`) with a text
encoder of no layers, and a 16-channel tiny autoencoder (`tae.hpp`). The autoencoder is not random: it
keeps the mean colour of each 8x8 block, so that image-to-image stays near its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Tensors = Iterator[tuple[str, Array]]

HEAD = 128  # 16 + 56 + 56 rotary dimensions, fixed by sd.cpp
VOCABULARY = 151_936  # Qwen's
CONTEXT = 64
FULL_CONTEXT, FULL_LAYERS = 2048, 28  # Qwen3 1.7B
TEXT = "text_encoders.llm.model"
LATENT = 16
CHANNELS = 64  # width of every TAE layer
LATENT_GAIN = 4.0  # colours in [-0.5, 0.5] become latents of about unit size


def write_test_model(
    folder: Path, *, hidden: int = 128, single_blocks: int = 1, full_text: bool = False, seed: int = 0
) -> dict[str, Path]:
    """Write `tiny-random.gguf` and `tiny-random-tae.gguf`; paths by role ("model", "taesd").

    `hidden` is a multiple of 128; 256 with 5 single blocks has the size of the embedded model (25 MB).
    `full_text` is a text encoder of the shapes of Ovis-Image's own, Qwen3 1.7B (1.8 GB).
    """
    if hidden % HEAD:
        raise ValueError(f"hidden must be a multiple of {HEAD}, not {hidden}")
    rng = np.random.default_rng(seed)
    model, taesd = folder / "tiny-random.gguf", folder / "tiny-random-tae.gguf"

    context = FULL_CONTEXT if full_text else CONTEXT
    writer = gguf.GGUFWriter(str(model), "ovis-image")
    _add_matrix(writer, rng, f"{TEXT}.embed_tokens", VOCABULARY, context)
    _add(writer, f"{TEXT}.norm.weight", np.ones(context, np.float32))
    for number in range(FULL_LAYERS if full_text else 0):
        _add_text_layer(writer, rng, f"{TEXT}.layers.{number}")
    for name, weight in _transformer(rng, hidden, single_blocks, context):
        _add(writer, name, weight)
    _finish(writer)

    writer = gguf.GGUFWriter(str(taesd), "taesd")
    for name, weight in _autoencoder(rng):
        _add(writer, name, weight)
    _finish(writer)
    return {"model": model, "taesd": taesd}


def _add_matrix(
    writer: gguf.GGUFWriter, rng: np.random.Generator, name: str, outputs: int, inputs: int
) -> None:
    """Random Q8_0 blocks made directly: an f16 scale and 32 int8 each. Ten times faster than quantising."""
    blocks = np.empty((outputs, inputs // 32, 34), np.uint8)
    blocks[..., :2] = np.array([1 / 64], np.float16).view(np.uint8)
    blocks[..., 2:] = rng.integers(0, 256, (outputs, inputs // 32, 32), np.uint8)
    q8 = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor(f"{name}.weight", blocks.reshape(outputs, -1), raw_dtype=q8)


def _add_text_layer(writer: gguf.GGUFWriter, rng: np.random.Generator, layer: str) -> None:
    """16 heads and 8 of keys and values, as sd.cpp's `llm.hpp` wants of 28 layers."""
    queries, keys, wide = 16 * HEAD, 8 * HEAD, 3 * FULL_CONTEXT
    for part, outputs, inputs in (
        ("self_attn.q_proj", queries, FULL_CONTEXT),
        ("self_attn.k_proj", keys, FULL_CONTEXT),
        ("self_attn.v_proj", keys, FULL_CONTEXT),
        ("self_attn.o_proj", FULL_CONTEXT, queries),
        ("mlp.gate_proj", wide, FULL_CONTEXT),
        ("mlp.up_proj", wide, FULL_CONTEXT),
        ("mlp.down_proj", FULL_CONTEXT, wide),
    ):
        _add_matrix(writer, rng, f"{layer}.{part}", outputs, inputs)
    for part, width in (
        ("self_attn.q_norm", HEAD),
        ("self_attn.k_norm", HEAD),
        ("input_layernorm", FULL_CONTEXT),
        ("post_attention_layernorm", FULL_CONTEXT),
    ):
        _add(writer, f"{layer}.{part}.weight", np.ones(width, np.float32))


def _add(writer: gguf.GGUFWriter, name: str, weight: Array) -> None:
    """Matrices as Q8_0, convolutions as F16, the rest as F32."""
    match weight.ndim:
        case 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(weight, q8), raw_dtype=q8)
        case 4:
            writer.add_tensor(name, weight.astype(np.float16))
        case _:
            writer.add_tensor(name, weight)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _transformer(rng: np.random.Generator, hidden: int, single_blocks: int, context: int) -> Tensors:
    for name, weight in _flux(rng, hidden, single_blocks, context):
        yield f"model.diffusion_model.{name}", weight


def _flux(rng: np.random.Generator, hidden: int, single_blocks: int, context: int) -> Tensors:
    mlp, patch = 4 * hidden, 4 * LATENT
    yield from _linear(rng, "img_in", patch, hidden)
    yield from _linear(rng, "time_in.in_layer", 256, hidden)
    yield from _linear(rng, "time_in.out_layer", hidden, hidden)
    yield "txt_norm.scale", np.ones(context, np.float32)
    yield from _linear(rng, "txt_in", context, hidden)
    for stream in ("double_blocks.0.img", "double_blocks.0.txt"):
        yield from _modulation(rng, f"{stream}_mod.lin", hidden, 6)
        yield from _linear(rng, f"{stream}_attn.qkv", hidden, 3 * hidden)
        yield from _qk_norm(f"{stream}_attn.norm")
        yield from _linear(rng, f"{stream}_attn.proj", hidden, hidden)
        yield from _linear(rng, f"{stream}_mlp.gate_proj", hidden, mlp)
        yield from _linear(rng, f"{stream}_mlp.up_proj", hidden, mlp)
        yield from _linear(rng, f"{stream}_mlp.down_proj", mlp, hidden)
    for block in (f"single_blocks.{i}" for i in range(single_blocks)):
        yield from _modulation(rng, f"{block}.modulation.lin", hidden, 3)
        yield from _linear(rng, f"{block}.linear1", hidden, 3 * hidden + 2 * mlp)
        yield from _qk_norm(f"{block}.norm")
        yield from _linear(rng, f"{block}.linear2", hidden + mlp, hidden)
    yield from _linear(rng, "final_layer.adaLN_modulation.1", hidden, 2 * hidden)
    yield from _linear(rng, "final_layer.linear", hidden, patch)


def _linear(rng: np.random.Generator, name: str, inputs: int, outputs: int) -> Tensors:
    yield f"{name}.weight", rng.standard_normal((outputs, inputs), np.float32) / np.float32(inputs**0.5)
    yield f"{name}.bias", np.zeros(outputs, np.float32)


def _modulation(rng: np.random.Generator, name: str, hidden: int, parts: int) -> Tensors:
    """Shift, scale and gate: the gates are open, or the blocks (and the prompt) would not matter."""
    (weight_name, weight), (bias_name, bias) = _linear(rng, name, hidden, parts * hidden)
    bias.reshape(parts, hidden)[2::3] = 1
    yield weight_name, weight * np.float32(0.1)
    yield bias_name, bias


def _qk_norm(name: str) -> Tensors:
    """Queries above unit size make the attention choose, so that each token of the prompt has effect."""
    yield f"{name}.query_norm.scale", np.full(HEAD, 2, np.float32)
    yield f"{name}.key_norm.scale", np.ones(HEAD, np.float32)


def _autoencoder(rng: np.random.Generator) -> Tensors:
    """Red, green and blue live in the first 3 of 64 channels; `mix` spreads them over all latents."""
    mix = np.linalg.qr(rng.standard_normal((LATENT, 3)))[0].astype(np.float32)  # orthonormal columns
    to_latent, to_colour = LATENT_GAIN * mix, mix.T / LATENT_GAIN
    grey = np.full(3, 0.5, np.float32)

    encoder = "tae.encoder.layers"
    yield from _conv(f"{encoder}.0", CHANNELS, 3, np.eye(3), np.zeros(3))
    for i in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        yield from _passing_block(f"{encoder}.{i}")
    for i in (2, 6, 10):
        yield f"{encoder}.{i}.weight", _halving()
    yield from _conv(f"{encoder}.14", LATENT, CHANNELS, to_latent, -to_latent @ grey)

    decoder = "tae.decoder.layers"
    yield from _conv(f"{decoder}.0", CHANNELS, LATENT, to_colour, grey)
    for i in (2, 3, 4, 7, 8, 9, 12, 13, 14, 17):
        yield from _passing_block(f"{decoder}.{i}")
    for i in (6, 11, 16):
        yield f"{decoder}.{i}.weight", _kernel(CHANNELS, CHANNELS, np.eye(3))
    yield from _conv(f"{decoder}.18", 3, CHANNELS, np.eye(3), np.zeros(3))


def _conv(name: str, outputs: int, inputs: int, matrix: npt.ArrayLike, bias: npt.ArrayLike) -> Tensors:
    yield f"{name}.weight", _kernel(outputs, inputs, matrix)
    biases = np.zeros(outputs, np.float32)
    biases[: len(np.asarray(bias))] = bias
    yield f"{name}.bias", biases


def _kernel(outputs: int, inputs: int, matrix: npt.ArrayLike) -> Array:
    """A 3x3 convolution that applies `matrix` to the first channels of each pixel alone."""
    rows, columns = np.asarray(matrix).shape
    kernel = np.zeros((outputs, inputs, 3, 3), np.float32)
    kernel[:rows, :columns, 1, 1] = matrix
    return kernel


def _halving() -> Array:
    """A convolution of stride 2 that averages 2x2 pixels: with padding 1, taps 1 and 2 are that square."""
    kernel = np.zeros((CHANNELS, CHANNELS, 3, 3), np.float32)
    kernel[:3, :3, 1:, 1:] = np.eye(3)[..., None, None] / 4
    return kernel


def _passing_block(name: str) -> Tensors:
    """A residual block whose convolutions add nothing: colours are positive, so its ReLU keeps them."""
    for part in ("conv.0", "conv.2", "conv.4"):
        yield from _conv(f"{name}.{part}", CHANNELS, CHANNELS, np.zeros((3, 3)), np.zeros(3))
