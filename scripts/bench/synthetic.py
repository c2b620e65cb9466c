"""A Stable Diffusion 1.5 without its training: every tensor in its place, all of them zero.

Speed and memory do not depend on what the weights are, and a file of zeros takes no room on a disk. The names
and shapes are those of the checkpoints that sd.cpp reads (CompVis' latent-diffusion layout).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

Shape = tuple[int, ...]
Tensors = Iterator[tuple[str, Shape]]
CHANNELS, TIME, CONTEXT = 320, 1280, 768
LEVELS = (1, 2, 4, 4)
UNET, VAE = "model.diffusion_model.", "first_stage_model."


def write_synthetic_sd1(path: Path) -> Path:
    """A safetensors file of 2.1 GB in F16, sparse where the disk can have it so."""
    return _write(path, sd1())


def sd1() -> Tensors:
    """Text encoder, UNet and autoencoder of Stable Diffusion 1.5."""
    yield from _text_encoder()
    yield from _unet()
    yield from vae()


def sdxs() -> Tensors:
    """SDXS-512 (DreamShaper), of one step: half of the UNet's blocks, no middle, the tiny decoder inside."""
    yield from _text_encoder()
    yield from _small_unet()
    yield from ((f"tae.{name}", shape) for name, shape in taesd())


def write_synthetic_taesd(path: Path) -> Path:
    """The tiny decoder and encoder that go with it, 5 MB."""
    return _write(path, taesd())


def _write(path: Path, tensors: Iterable[tuple[str, Shape]]) -> Path:
    header, end = {}, 0
    for name, shape in tensors:
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def taesd(latents: int = 4) -> Tensors:
    """The tiny autoencoder (tae.hpp) with so many channels."""
    width = 64
    for part, inputs, outputs, blocks, resized in (
        ("encoder.layers.", 3, latents, (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), (2, 6, 10)),
        ("decoder.layers.", latents, 3, (2, 3, 4, 7, 8, 9, 12, 13, 14, 17), (6, 11, 16)),
    ):
        yield from _conv(f"{part}0", inputs, width)
        for number in blocks:
            for conv in (0, 2, 4):
                yield from _conv(f"{part}{number}.conv.{conv}", width, width)
        for number in resized:
            yield f"{part}{number}.weight", (width, width, 3, 3)
        yield from _conv(f"{part}{max(blocks) + 1}", width, outputs)


def _linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Tensors:
    yield f"{name}.weight", (outputs, inputs)
    if bias:
        yield f"{name}.bias", (outputs,)


def _conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> Tensors:
    yield f"{name}.weight", (outputs, inputs, kernel, kernel)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, channels: int) -> Tensors:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def _text_encoder() -> Tensors:
    prefix = "cond_stage_model.transformer.text_model."
    yield f"{prefix}embeddings.token_embedding.weight", (49408, CONTEXT)
    yield f"{prefix}embeddings.position_embedding.weight", (77, CONTEXT)
    for layer in (f"{prefix}encoder.layers.{number}." for number in range(12)):
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}self_attn.{part}", CONTEXT, CONTEXT)
        yield from _linear(f"{layer}mlp.fc1", CONTEXT, 4 * CONTEXT)
        yield from _linear(f"{layer}mlp.fc2", 4 * CONTEXT, CONTEXT)
        yield from _norm(f"{layer}layer_norm1", CONTEXT)
        yield from _norm(f"{layer}layer_norm2", CONTEXT)
    yield from _norm(f"{prefix}final_layer_norm", CONTEXT)


def _unet() -> Tensors:
    yield from _linear(f"{UNET}time_embed.0", CHANNELS, TIME)
    yield from _linear(f"{UNET}time_embed.2", TIME, TIME)
    yield from _conv(f"{UNET}input_blocks.0.0", 4, CHANNELS)
    skipped, width, number = [CHANNELS], CHANNELS, 0
    for level, factor in enumerate(LEVELS):
        for _ in range(2):
            number += 1
            yield from _unet_block(f"{UNET}input_blocks.{number}.", width, factor * CHANNELS, level < 3)
            width = factor * CHANNELS
            skipped.append(width)
        if level < 3:
            number += 1
            yield from _conv(f"{UNET}input_blocks.{number}.0.op", width, width)
            skipped.append(width)
    yield from _unet_block(f"{UNET}middle_block.", width, width, True)
    yield from _residual(f"{UNET}middle_block.2.", width, width)
    number = 0
    for level, factor in reversed(list(enumerate(LEVELS))):
        for repeat in range(3):
            block = f"{UNET}output_blocks.{number}."
            yield from _unet_block(block, width + skipped.pop(), factor * CHANNELS, level < 3)
            width = factor * CHANNELS
            if level and repeat == 2:
                yield from _conv(f"{block}{2 if level < 3 else 1}.conv", width, width)
            number += 1
    yield from _norm(f"{UNET}out.0", CHANNELS)
    yield from _conv(f"{UNET}out.2", CHANNELS, 4)


def _small_unet() -> Tensors:
    """The numbers of blocks are those that unet.hpp gives a UNet of one block a level, with gaps."""
    yield from _linear(f"{UNET}time_embed.0", CHANNELS, TIME)
    yield from _linear(f"{UNET}time_embed.2", TIME, TIME)
    yield from _conv(f"{UNET}input_blocks.0.0", 4, CHANNELS)
    one, two, four = (factor * CHANNELS for factor in (1, 2, 4))
    for number, inputs, outputs in ((1, one, one), (4, one, two), (7, two, four)):
        yield from _unet_block(f"{UNET}input_blocks.{number}.", inputs, outputs, outputs > one)
    for number, width in ((3, one), (6, two)):
        yield from _conv(f"{UNET}input_blocks.{number}.0.op", width, width)
    for number, inputs, outputs in (
        (0, four + four, four), (1, four + two, four), (3, four + two, two),
        (4, two + one, two), (6, two + one, one), (7, one + one, one),
    ):  # fmt: skip
        yield from _unet_block(f"{UNET}output_blocks.{number}.", inputs, outputs, outputs > one)
    yield from _conv(f"{UNET}output_blocks.2.1.conv", four, four)
    yield from _conv(f"{UNET}output_blocks.5.2.conv", two, two)
    yield from _norm(f"{UNET}out.0", CHANNELS)
    yield from _conv(f"{UNET}out.2", CHANNELS, 4)


def _unet_block(prefix: str, inputs: int, outputs: int, attends: bool) -> Tensors:
    yield from _residual(f"{prefix}0.", inputs, outputs)
    if attends:
        yield from _transformer(f"{prefix}1.", outputs)


def _residual(prefix: str, inputs: int, outputs: int) -> Tensors:
    yield from _norm(f"{prefix}in_layers.0", inputs)
    yield from _conv(f"{prefix}in_layers.2", inputs, outputs)
    yield from _linear(f"{prefix}emb_layers.1", TIME, outputs)
    yield from _norm(f"{prefix}out_layers.0", outputs)
    yield from _conv(f"{prefix}out_layers.3", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{prefix}skip_connection", inputs, outputs, 1)


def _transformer(prefix: str, width: int) -> Tensors:
    block = f"{prefix}transformer_blocks.0."
    yield from _norm(f"{prefix}norm", width)
    yield from _conv(f"{prefix}proj_in", width, width, 1)
    for attention, source in (("attn1", width), ("attn2", CONTEXT)):
        yield from _linear(f"{block}{attention}.to_q", width, width, bias=False)
        yield from _linear(f"{block}{attention}.to_k", source, width, bias=False)
        yield from _linear(f"{block}{attention}.to_v", source, width, bias=False)
        yield from _linear(f"{block}{attention}.to_out.0", width, width)
    yield from _linear(f"{block}ff.net.0.proj", width, 8 * width)
    yield from _linear(f"{block}ff.net.2", 4 * width, width)
    for number in (1, 2, 3):
        yield from _norm(f"{block}norm{number}", width)
    yield from _conv(f"{prefix}proj_out", width, width, 1)


def vae(prefix: str = VAE, latents: int = 4, narrow: int = 128) -> Tensors:
    """The autoencoder (auto_encoder_kl.hpp), whose decoder may be `narrow`: multiples of 32."""
    encoder, decoder, width = f"{prefix}encoder.", f"{prefix}decoder.", 128
    yield from _conv(f"{encoder}conv_in", 3, width)
    for level, factor in enumerate((1, 2, 4, 4)):
        for number in range(2):
            yield from _vae_block(f"{encoder}down.{level}.block.{number}.", width, 128 * factor)
            width = 128 * factor
        if level < 3:
            yield from _conv(f"{encoder}down.{level}.downsample.conv", width, width)
    yield from _vae_middle(encoder)
    yield from _norm(f"{encoder}norm_out", 512)
    yield from _conv(f"{encoder}conv_out", 512, 2 * latents)
    width = 4 * narrow
    yield from _conv(f"{decoder}conv_in", latents, width)
    yield from _vae_middle(decoder, width)
    for level, factor in reversed(list(enumerate((1, 2, 4, 4)))):
        for number in range(3):
            yield from _vae_block(f"{decoder}up.{level}.block.{number}.", width, narrow * factor)
            width = narrow * factor
        if level:
            yield from _conv(f"{decoder}up.{level}.upsample.conv", width, width)
    yield from _norm(f"{decoder}norm_out", narrow)
    yield from _conv(f"{decoder}conv_out", narrow, 3)
    yield from _conv(f"{prefix}quant_conv", 2 * latents, 2 * latents, 1)
    yield from _conv(f"{prefix}post_quant_conv", latents, latents, 1)


def _vae_middle(prefix: str, width: int = 512) -> Tensors:
    yield from _vae_block(f"{prefix}mid.block_1.", width, width)
    yield from _norm(f"{prefix}mid.attn_1.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{prefix}mid.attn_1.{part}", width, width, 1)
    yield from _vae_block(f"{prefix}mid.block_2.", width, width)


def _vae_block(prefix: str, inputs: int, outputs: int) -> Tensors:
    yield from _norm(f"{prefix}norm1", inputs)
    yield from _conv(f"{prefix}conv1", inputs, outputs)
    yield from _norm(f"{prefix}norm2", outputs)
    yield from _conv(f"{prefix}conv2", outputs, outputs)
    if inputs != outputs:
        yield from _conv(f"{prefix}nin_shortcut", inputs, outputs, 1)
