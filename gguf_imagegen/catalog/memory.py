"""What a model takes of a machine's memory: what sd.cpp allocates, from headers or file sizes.

sd.cpp keeps the weights of all parts and computes in one buffer at a time: the sampler frees its own before
the decoder takes one (`sample` in stable-diffusion.cpp, `VAE::decode` in vae.hpp), so the peak is base +
weights + the larger of the two; both together only while a preview is decoded. The formulas follow the
graphs, and `tests/catalog/test_memory.py` holds them against the "compute buffer size" that sd.cpp 0.4.7 logs
and against the peak resident memory of the engine on a CPU.

Left out: LoRA files, the buffers of a ControlNet and of the text encoders (T5 needs 68 MiB for 256 tokens,
less than the sampler), a GPU's pools beyond a constant, prompts longer than `_Transformer.text` tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from gguf_imagegen.catalog.tiles import latent_scale, tile_of
from gguf_imagegen.modelfiles.header import Header, TensorInfo
from gguf_imagegen.vocabulary.engine import PreviewMode, Role

Files: TypeAlias = Mapping[Role, Header | int]
_Bytes: TypeAlias = Mapping[str, int]  # by part: "text", "diffusion", "control" and "decoder"
_Tensors: TypeAlias = Sequence[tuple[str, TensorInfo]]  # each with its part
_F16, _F32 = 2, 4
_PROGRAM = 65_000_000  # Python and the library, measured
_TOKENIZERS = 50_000_000  # vocabularies of T5 and of language models, measured with Qwen's
_GPU_CONTEXT = 500_000_000  # assumed: kernels, contexts and workspaces of a GPU backend
_PICTURE = 2 * 3 * _F32  # per pixel: the decoded picture and its copy


@dataclass(frozen=True)
class Memory:
    """Bytes of main and of graphics memory."""

    ram: int
    vram: int = 0


@dataclass(frozen=True)
class Estimate:
    """What one generation takes, in bytes: the buffers of sampler and decoder, and the peaks they lead to."""

    width: int
    height: int
    base: int
    weights: int
    activations: int
    decode: int
    decode_tiled: int
    plain: Memory
    tiled: Memory

    def memory(self, tiling: bool) -> Memory:
        """The peak of either kind of memory, at whatever time it comes."""
        return self.tiled if tiling else self.plain

    def total(self, tiling: bool) -> int:
        """On a CPU, without previews: base + weights + max(activations, decode)."""
        return self.memory(tiling).ram + self.memory(tiling).vram


def estimate(
    files: Files,
    family: str,
    width: int,
    height: int,
    *,
    gpu: bool,
    offload_to_cpu: bool = False,
    vae_on_cpu: bool = False,
    text_encoders_on_cpu: bool = False,
    control_net_on_cpu: bool = False,
    max_vram: float = 0.0,
    flash_attention: bool = False,
    vae_conv_direct: bool = False,
    preview: PreviewMode = "none",
    references: int = 0,
    tile: tuple[int, int] | None = None,
) -> Estimate:
    """What a model takes, by its files' headers, or by the sizes in bytes of files that are not there yet.

    Sizes tell less: `{"model": sum}` will do, one number for each role is better. `gpu` means one with memory
    of its own. `references` are the images, of about the same size, that an edit starts from.
    `tile` is the size in latent pixels of what tiled decoding does at once, if it is not our own choice. With
    `max_vram` (GiB) a GPU does in parts what takes more, as far as sd.cpp's graphs can be cut.
    """
    tensors = list(_used_tensors(files, family))
    network = _network(family, {tensor.name: tensor for part, tensor in tensors if part == "diffusion"})
    weights = _weights(files, tensors, network.vocabulary)
    activations = network.buffer(width, height, references, flash_attention)
    vae = _vae_per_pixel(files, family, tensors, vae_conv_direct)
    previewer = {"none": 0, "proj": 0, "tae": _TAE_PER_PIXEL if "taesd" in files else vae, "vae": vae}
    tile_width, tile_height = (latent_scale(family) * side for side in tile or tile_of(family, width, height))
    picture, tile_pixels = _PICTURE * width * height, min(width, tile_width) * min(height, tile_height)
    base = _PROGRAM + (_TOKENIZERS if isinstance(network, _Transformer) else 0)
    on_gpu = {
        "text": gpu and not text_encoders_on_cpu,
        "diffusion": gpu,
        "control": gpu and not control_net_on_cpu,
        "decoder": gpu and not vae_on_cpu,
    }
    most = int(max_vram * 2**30) or None

    def peak(pixels: int) -> Memory:
        sampling = {"diffusion": activations, "control": 0}
        if shown := previewer[preview] * pixels:
            sampling["decoder"] = shown + picture
        phases = ({"text": 0}, sampling, {"decoder": vae * pixels + picture})
        return _peak(base, weights, phases, on_gpu, offload_to_cpu, most)

    decode, decode_tiled = vae * width * height + picture, vae * tile_pixels + picture
    return Estimate(
        width, height, base, sum(weights.values()), activations, decode, decode_tiled,
        plain=peak(width * height), tiled=peak(tile_pixels),
    )  # fmt: skip


def _peak(
    base: int,
    weights: _Bytes,
    phases: Sequence[_Bytes],
    on_gpu: Mapping[str, bool],
    offload: bool,
    most: int | None,
) -> Memory:
    """The most of all phases, which are the buffers by part.

    With `offload` the weights of parts on the GPU stay in main memory, and visit it while they compute;
    `most` is what they and a buffer may take there together.
    """
    offload = offload or most is not None
    ram = base + sum(size for part, size in weights.items() if offload or not on_gpu[part])
    ram += max(sum(size for part, size in phase.items() if not on_gpu[part]) for phase in phases)
    if not on_gpu["diffusion"]:
        return Memory(ram)
    kept = sum(size for part, size in weights.items() if on_gpu[part] and not offload)
    used = [[size + offload * weights[p] for p, size in phase.items() if on_gpu[p]] for phase in phases]
    largest = max(map(sum, used))
    return Memory(ram, _GPU_CONTEXT + kept + (largest if most is None else min(largest, most)))


_PARTS: Mapping[Role, str] = {
    "clip_l": "text", "clip_g": "text", "clip_vision": "text", "t5xxl": "text", "llm": "text",
    "llm_vision": "text", "control_net": "control", "vae": "decoder", "taesd": "decoder",
    "upscaler": "decoder",
}  # fmt: skip
_TEXT = ("text_encoders.", "cond_stage_model.", "conditioner.", "te.")
_VAE = ("first_stage_model.", "vae.")
_UNUSED = ("model_ema.", "text_encoders.llm.output.", "text_encoders.llm.lm_head.")  # model.cpp
_UNUSED_IN = {"llm": ("output.", "lm_head."), "t5xxl": ("dec.", "decoder.", "lm_head.")}
_VISION = ("visual.", "v.", "text_encoders.llm.visual", "text_encoders.llm.vte.")
_EMBEDDINGS = ("token_embd.weight", "embed_tokens.weight", "shared.weight", "token_embedding.weight")
_READ_BY_ROWS = {"F16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"}


def _used_tensors(files: Files, family: str) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors that sd.cpp loads, each with its part."""
    for role, file in files.items():
        unused = _UNUSED + _UNUSED_IN.get(role, ())
        if role in ("model", "llm") and family != "qwen-image":
            unused += _VISION
        if role == "model" and "vae" in files:
            unused += _VAE
        for name, tensor in file.tensors.items() if isinstance(file, Header) else ():
            if name.startswith(unused):
                continue
            if role == "control_net" and len(tensor.shape) == 2:  # F32 whatever the file has (`Linear`)
                tensor = replace(tensor, type="F32", nbytes=_F32 * math.prod(tensor.shape))
            if role != "model":
                yield _PARTS.get(role, "diffusion"), tensor
            elif name.startswith(_TEXT):
                yield "text", tensor
            else:
                yield "decoder" if name.startswith((*_VAE, "tae.")) else "diffusion", tensor


def _weights(files: Files, tensors: _Tensors, vocabulary: int) -> dict[str, int]:
    """Bytes in memory by part; a text encoder that is known by size alone grows by the vocabulary."""
    weights = dict.fromkeys(("text", "diffusion", "control", "decoder"), 0)
    for part, tensor in tensors:
        weights[part] += _loaded_bytes(tensor)
    weights["text"] = weights["text"] or vocabulary
    for role, file in files.items():
        weights[_PARTS.get(role, "diffusion")] += file if isinstance(file, int) else 0
    return weights


def _loaded_bytes(tensor: TensorInfo) -> int:
    """Bytes in memory: some types are converted (`Linear`, `Embedding`, `Conv2d` in ggml_extend.hpp)."""
    elements = math.prod(tensor.shape)
    if len(tensor.shape) >= 4 or tensor.type.startswith("F8_"):
        return elements * _F16
    if len(tensor.shape) < 2 or tensor.type == "F64":
        return elements * _F32
    if tensor.name.endswith(_EMBEDDINGS) and tensor.type not in _READ_BY_ROWS:
        return elements * _F32
    return tensor.nbytes


@dataclass(frozen=True)
class _UNet:
    """unet.hpp: scores of the first level with attention, with all keys and values of the text still there.

    Convolutions over the widest concatenated map set the least: 24 maps of 320 channels.
    """

    heads: int
    level: int
    text_width: int  # sum over the cross-attentions
    vocabulary: int = 0

    def buffer(self, width: int, height: int, _references: int, flash: bool) -> int:
        latents = (width // 8) * (height // 8)
        channels = 320 * _F32 * latents
        scores = self.heads * (latents // 4**self.level) ** 2 * _F32
        keys = 2 * 77 * self.text_width * _F32
        return 24 * channels if flash else max(scores + keys + 8 * channels, 24 * channels)


@dataclass(frozen=True)
class _Transformer:
    """mmdit.hpp, flux.hpp, qwen_image.hpp, z_image.hpp: scores over all tokens, and maps of the hidden size.

    `attended` maps stand beside the scores; with flash attention there are `mapped`, or fewer and two masks
    where the tokens need padding to 256. `vocabulary` is the most that an embedding grows as F32.
    """

    hidden: int
    head: int
    text: int
    attended: float
    mapped: float
    vocabulary: int = 0

    def buffer(self, width: int, height: int, references: int, flash: bool) -> int:
        tokens = (width // 16) * (height // 16) * (1 + references) + self.text
        one_map = tokens * self.hidden * _F32
        scores = self.hidden // self.head * tokens**2 * _F32
        masks = 2 * tokens**2 * _F32 if tokens % 256 else 0
        plain = scores + self.attended * one_map
        flashing = max(self.mapped * one_map, masks + 5.5 * one_map)
        return int((flashing if flash else plain) + _CONVERTED * one_map)


_CONVERTED = 1.3  # activations in the type of the weights, beside the buffer (ggml-cpu.c), measured
_UNETS: Mapping[str, _UNet] = {
    "sd1": _UNet(heads=8, level=0, text_width=12_480),
    "sd2": _UNet(heads=5, level=0, text_width=12_480),
    "sdxl": _UNet(heads=10, level=1, text_width=83_200),
}


def _flux(hidden: int, text: int, widening: float, vocabulary: int = 0) -> _Transformer:
    """`widening`: outputs of a single block's first matrix by hidden size, all of them there at once."""
    return _Transformer(hidden, 128, text, widening + 5.6, 2 * widening + 1.3, vocabulary)


_QWEN = 151_936 * _F32
_TRANSFORMERS: Mapping[str, _Transformer] = {
    "sd3": _Transformer(2432, 64, 154, 6.5, 9),
    "flux": _flux(3072, 256, 7),
    "flux-fill": _flux(3072, 256, 7),
    "flux-controls": _flux(3072, 256, 7),
    "chroma": _flux(3072, 512, 7),
    "chroma-radiance": _flux(3072, 512, 7),
    "flux2": _flux(4096, 512, 9, _QWEN * 4096),
    "ovis-image": _flux(3072, 256, 11, _QWEN * 2048),
    "qwen-image": _Transformer(3072, 128, 200, 6, 13, _QWEN * 3584),
    "z-image": _Transformer(3840, 128, 200, 7.2, 11.4, _QWEN * 2560),
    "anima": _Transformer(2048, 128, 0, 7.2, 11.4, _QWEN * 1024),
    "ernie-image": _Transformer(4096, 128, 200, 7.2, 11.4, 131_072 * _F32 * 3072),
}


def _network(family: str, tensors: Mapping[str, TensorInfo]) -> _UNet | _Transformer:
    """The family's sizes, except where sd.cpp takes them from the tensors; an unknown one is like Flux."""
    if unet := _UNETS.get(family.split("-")[0]):
        return unet
    usual = _TRANSFORMERS.get(family, _TRANSFORMERS["flux"])
    shapes = {name.removeprefix("model.diffusion_model."): tensor.shape for name, tensor in tensors.items()}
    if family == "sd3" and (depth := sum(name.endswith("x_block.attn.qkv.weight") for name in shapes)):
        return replace(usual, hidden=64 * depth)  # mmdit.hpp
    first = shapes.get("single_blocks.0.linear1.weight", ())
    if usual.head == 128 and "txt_in.weight" in shapes and len(first) == 2 and first[1]:
        return _flux(first[1], usual.text, first[0] / first[1], usual.vocabulary)
    return usual


# Bytes per pixel: a few maps in F32, and nine taps of every channel in F16 unless convolutions are direct.
_CONV_IN = "decoder.conv_in.weight"
_TAE_PER_PIXEL = 64 * (9 * _F16 + 3 * _F32)  # tae.hpp
_NERF_PER_PIXEL = 64 * 12 * _F32 + 3 * 64 * 64 * 4 * _F32 // 256  # maps, and a patch's own weights (flux.hpp)
_WAN_PER_PIXEL = 96 * (27 * _F16 + 6 * _F32)  # wan.hpp, whose kernels reach over three frames


def _vae_per_pixel(files: Files, family: str, tensors: _Tensors, direct: bool) -> int:
    """A TAESD decodes only where there is no VAE; a model of unknown content is taken to have one.

    auto_encoder_kl.hpp: the last level begins with twice its channels, which `conv_in` has fourfold. An SDXL
    VAE that comes in the model's file scales its maps, in a copy (`set_conv2d_scale`).
    """
    inside = isinstance(files.get("model"), int) or any(t.name.startswith(_VAE) for _, t in tensors)
    if "taesd" in files and "vae" not in files and not inside:
        return _TAE_PER_PIXEL
    if family == "chroma-radiance":
        return _NERF_PER_PIXEL
    if family in ("qwen-image", "anima"):
        return _WAN_PER_PIXEL
    shape = next((t.shape for _, t in tensors if t.shape and t.name.endswith(_CONV_IN)), (512,))
    maps = 3 if family.startswith("sdxl") and "vae" not in files else 2
    if direct:  # what is upsampled stands beside its source
        return int(shape[0] // 2 * (maps + 0.75) * _F32)
    return shape[0] // 2 * (9 * _F16 + maps * _F32)
