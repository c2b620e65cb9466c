"""Models of random weights in the smallest sizes that sd.cpp's code allows a family, each with its decoder.

Matrices of the widths that the code fixes are in Q4_0, so that even those files stay below 170 MB. T5, which
would be gigabytes, is left out: sd.cpp then conditions on zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter

from gguf_imagegen.vocabulary.engine import Role
from scripts.bench.synthetic import taesd, vae

HIDDEN = 128
Shapes = Iterator[tuple[str, tuple[int, ...]]]
_BLOCK, _BLOCK_BYTES = 32, 18  # of Q4_0
_LARGE = 1 << 20


def write_family(family: str, folder: Path) -> dict[Role, Path]:
    """The files of a small model of this family, by role."""
    parts = _PARTS[family]
    return {role: _write(folder / f"{family}-{role}.gguf", shapes()) for role, shapes in parts.items()}


def _write(path: Path, shapes: Shapes) -> Path:
    rng = np.random.default_rng(0)
    writer = GGUFWriter(str(path), "random")
    for name, shape in shapes:
        if len(shape) == 2 and shape[0] * shape[1] >= _LARGE:
            data = _blocks(rng, shape)
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType.Q4_0)
        else:
            weight = 0.03 * rng.standard_normal(shape, np.float32)
            if len(shape) == 1 and not name.endswith(".bias"):
                weight += 1  # of a norm
            writer.add_tensor(name, weight.astype(np.float16) if len(shape) == 4 else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """A matrix in Q4_0, of one row's worth of random blocks over and over."""
    row = rng.integers(0, 256, (shape[1] // _BLOCK, _BLOCK_BYTES), np.uint8)
    row[:, :2] = np.frombuffer(np.float16(0.003).tobytes(), np.uint8)
    return np.tile(row.reshape(1, -1), (shape[0], 1))


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _flux_blocks(modulated: bool = True) -> Shapes:
    """One block of each kind (flux.hpp); Chroma has its modulation elsewhere."""
    for side in ("img", "txt"):
        block = f"double_blocks.0.{side}"
        if modulated:
            yield from _linear(f"{block}_mod.lin", HIDDEN, 6 * HIDDEN)
        yield from _linear(f"{block}_attn.qkv", HIDDEN, 3 * HIDDEN)
        yield from _linear(f"{block}_attn.proj", HIDDEN, HIDDEN)
        yield from _linear(f"{block}_mlp.0", HIDDEN, 4 * HIDDEN)
        yield from _linear(f"{block}_mlp.2", 4 * HIDDEN, HIDDEN)
        yield from ((f"{block}_attn.norm.{part}_norm.scale", (128,)) for part in ("query", "key"))
    yield from _linear("single_blocks.0.linear1", HIDDEN, 7 * HIDDEN)
    yield from _linear("single_blocks.0.linear2", 5 * HIDDEN, HIDDEN)
    if modulated:
        yield from _linear("single_blocks.0.modulation.lin", HIDDEN, 3 * HIDDEN)
    yield from ((f"single_blocks.0.norm.{part}_norm.scale", (128,)) for part in ("query", "key"))


def _flux(channels: int) -> Callable[[], Shapes]:
    def shapes() -> Shapes:
        yield from _linear("img_in", channels, HIDDEN)
        yield from _linear("txt_in", 4096, HIDDEN)
        for name, inputs in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
            yield from _linear(f"{name}.in_layer", inputs, HIDDEN)
            yield from _linear(f"{name}.out_layer", HIDDEN, HIDDEN)
        yield from _flux_blocks()
        yield from _linear("final_layer.linear", HIDDEN, 64)
        yield from _linear("final_layer.adaLN_modulation.1", HIDDEN, 2 * HIDDEN)

    return shapes


def _radiance() -> Shapes:
    """The approximator's width of 5120 and the decoder's of 64 are fixed."""
    yield "img_in_patch.weight", (HIDDEN, 3, 16, 16)
    yield "img_in_patch.bias", (HIDDEN,)
    yield from _linear("txt_in", 4096, HIDDEN)
    yield from _linear("distilled_guidance_layer.in_proj", 64, 5120)
    for layer in range(5):
        yield f"distilled_guidance_layer.norms.{layer}.scale", (5120,)
        yield from _linear(f"distilled_guidance_layer.layers.{layer}.in_layer", 5120, 5120)
        yield from _linear(f"distilled_guidance_layer.layers.{layer}.out_layer", 5120, 5120)
    yield from _linear("distilled_guidance_layer.out_proj", 5120, HIDDEN)
    yield from _flux_blocks(modulated=False)
    yield from _linear("nerf_image_embedder.embedder.0", 3 + 64, 64)
    for block in range(4):
        yield from _linear(f"nerf_blocks.{block}.param_generator", HIDDEN, 3 * 64 * 64 * 4)
        yield f"nerf_blocks.{block}.norm.scale", (64,)
    yield "nerf_final_layer_conv.norm.scale", (64,)
    yield "nerf_final_layer_conv.conv.weight", (3, 64, 3, 3)
    yield "nerf_final_layer_conv.conv.bias", (3,)


def _anima() -> Shapes:
    """Only the number of blocks is free (anima.hpp)."""
    width = 2048
    yield from _linear("net.x_embedder.proj.1", 68, width, bias=False)
    yield from _linear("net.t_embedder.1.linear_1", width, width, bias=False)
    yield from _linear("net.t_embedder.1.linear_2", width, 3 * width, bias=False)
    yield "net.t_embedding_norm.weight", (width,)
    for part in ("self_attn", "cross_attn", "mlp"):
        yield from _linear(f"net.blocks.0.adaln_modulation_{part}.1", width, 256, bias=False)
        yield from _linear(f"net.blocks.0.adaln_modulation_{part}.2", 256, 3 * width, bias=False)
    yield from _anima_attention("net.blocks.0.self_attn", width, width, "output_proj")
    yield from _anima_attention("net.blocks.0.cross_attn", width, 1024, "output_proj")
    yield from _linear("net.blocks.0.mlp.layer1", width, 4 * width, bias=False)
    yield from _linear("net.blocks.0.mlp.layer2", 4 * width, width, bias=False)
    yield from _linear("net.final_layer.adaln_modulation.1", width, 256, bias=False)
    yield from _linear("net.final_layer.adaln_modulation.2", 256, 2 * width, bias=False)
    yield from _linear("net.final_layer.linear", width, 64, bias=False)
    yield "net.llm_adapter.embed.weight", (32128, 1024)
    for block in range(6):
        name = f"net.llm_adapter.blocks.{block}"
        yield from ((f"{name}.norm_{part}.weight", (1024,)) for part in ("self_attn", "cross_attn", "mlp"))
        yield from _anima_attention(f"{name}.self_attn", 1024, 1024, "o_proj", head=64)
        yield from _anima_attention(f"{name}.cross_attn", 1024, 1024, "o_proj", head=64)
        yield from _linear(f"{name}.mlp.0", 1024, 4096)
        yield from _linear(f"{name}.mlp.2", 4096, 1024)
    yield from _linear("net.llm_adapter.out_proj", 1024, 1024)
    yield "net.llm_adapter.norm.weight", (1024,)


def _anima_attention(name: str, width: int, context: int, out: str, head: int = 128) -> Shapes:
    for part, inputs in (("q", width), ("k", context), ("v", context)):
        yield from _linear(f"{name}.{part}_proj", inputs, width, bias=False)
    yield from ((f"{name}.{part}_norm.weight", (head,)) for part in "qk")
    yield from _linear(f"{name}.{out}", width, width, bias=False)


def _ernie() -> Shapes:
    """All of its widths are free (ernie_image.hpp); that of the text is the encoder's."""
    yield "x_embedder.proj.weight", (HIDDEN, 128, 1, 1)
    yield "x_embedder.proj.bias", (HIDDEN,)
    yield from _linear("text_proj", 64, HIDDEN, bias=False)
    for number in (1, 2):
        yield from _linear(f"time_embedding.linear_{number}", HIDDEN, HIDDEN)
    yield from _linear("adaLN_modulation.1", HIDDEN, 6 * HIDDEN)
    yield from ((f"layers.0.adaLN_{part}_ln.weight", (HIDDEN,)) for part in ("sa", "mlp"))
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        yield from _linear(f"layers.0.self_attention.{part}", HIDDEN, HIDDEN, bias=False)
    yield from ((f"layers.0.self_attention.norm_{part}.weight", (128,)) for part in "qk")
    for part in ("gate_proj", "up_proj"):
        yield from _linear(f"layers.0.mlp.{part}", HIDDEN, 256, bias=False)
    yield from _linear("layers.0.mlp.linear_fc2", 256, HIDDEN, bias=False)
    yield from _linear("final_norm.linear", HIDDEN, 2 * HIDDEN)
    yield from _linear("final_linear", HIDDEN, 128)


def _llm(vocabulary: int, width: int) -> Callable[[], Shapes]:
    """A language model without a layer: embeddings, and their norm."""

    def shapes() -> Shapes:
        yield "model.embed_tokens.weight", (vocabulary, width)
        yield "model.norm.weight", (width,)

    return shapes


def _clip_l() -> Shapes:
    """All of its sizes are fixed (clip.hpp)."""
    width = 768
    yield "text_model.embeddings.token_embedding.weight", (49408, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    for layer in (f"text_model.encoder.layers.{number}" for number in range(12)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _linear(f"{layer}.mlp.fc1", width, 4 * width)
        yield from _linear(f"{layer}.mlp.fc2", 4 * width, width)
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{layer}.{norm}.weight", (width,)
            yield f"{layer}.{norm}.bias", (width,)
    yield "text_model.final_layer_norm.weight", (width,)
    yield "text_model.final_layer_norm.bias", (width,)


def _tiny_video() -> Shapes:
    """The tiny autoencoder of videos (tae.hpp), of 16 channels."""
    yield from _conv("encoder.0", 3, 64)
    for level, stride in enumerate((2, 2, 1)):
        first = 2 + 5 * level
        yield f"encoder.{first}.conv.weight", (64, 64 * stride, 1, 1)
        yield f"encoder.{first + 1}.weight", (64, 64, 3, 3)
        for block in range(first + 2, first + 5):
            yield from _memory(f"encoder.{block}", 64)
    yield from _conv("encoder.17", 64, 16)
    yield from _conv("decoder.1", 16, 256)
    for level, (stride, width, narrower) in enumerate(((1, 256, 128), (2, 128, 64), (2, 64, 64))):
        first = 3 + 6 * level
        for block in range(first, first + 3):
            yield from _memory(f"decoder.{block}", width)
        yield f"decoder.{first + 4}.conv.weight", (width * stride, width, 1, 1)
        yield f"decoder.{first + 5}.weight", (narrower, width, 3, 3)
    yield from _conv("decoder.22", 64, 3)


def _memory(name: str, width: int) -> Shapes:
    yield from _conv(f"{name}.conv.0", 2 * width, width)
    yield from _conv(f"{name}.conv.2", width, width)
    yield from _conv(f"{name}.conv.4", width, width)


def _conv(name: str, inputs: int, outputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, 3, 3)
    yield f"{name}.bias", (outputs,)


_QWEN, _MISTRAL = 151_936, 131_072  # tokens
_PARTS: dict[str, dict[Role, Callable[[], Shapes]]] = {
    "flux-controls": {"diffusion": _flux(128), "clip_l": _clip_l, "taesd": lambda: taesd(16)},
    "flex-2": {"diffusion": _flux(196), "clip_l": _clip_l, "taesd": lambda: taesd(16)},
    "chroma-radiance": {"diffusion": _radiance},
    "anima": {"diffusion": _anima, "llm": _llm(_QWEN, 1024), "taesd": _tiny_video},
    "ernie-image": {
        "diffusion": _ernie,
        "llm": _llm(_MISTRAL, 64),
        "vae": lambda: vae("", latents=32, narrow=32),
    },
}
