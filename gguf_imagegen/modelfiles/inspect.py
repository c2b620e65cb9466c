"""What a model file is, from its tensors: family, component, and whether a set of files is complete.

The rules are those by which sd.cpp itself decides (`ModelLoader::get_sd_version` in model.cpp), so that the
server knows beforehand what the engine will make of a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gguf_imagegen.modelfiles.companions import check_companions
from gguf_imagegen.modelfiles.embeddings import embedding_family
from gguf_imagegen.modelfiles.formats import WORDS
from gguf_imagegen.modelfiles.header import Header, read_header
from gguf_imagegen.modelfiles.strangers import kind_of
from gguf_imagegen.modelfiles.traits import REFUSED
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile, MissingComponent

DIFFUSION = "model.diffusion_model."
_LUMINA_2 = 2304  # width of its text encoder, Gemma 2; sd.cpp knows Z-Image's alone
_CLIP_IN_UNET_FILES = ("cond_stage_model.", "conditioner.embedders.", "te.")
_BARE_DIFFUSION = re.compile(
    r"(double_blocks|single_blocks|joint_blocks|transformer_blocks|input_blocks|single_transformer_blocks"
    r"|cap_embedder|layers\.0\.adaLN|noise_refiner|nerf_|(net\.)?llm_adapter\.|(net\.)?blocks\.0\.(self|cross)_attn)"
)
_LORA = re.compile(
    r"lora[._](up|down|mid|A|B|linear)\b|\.lora_linear_layer\.|\.(hada|lokr)_w[12]|\.diff(_b)?$"
)
"""Marks of a LoRA, and of its kin LoHa and LoKr and plain differences, in the names of tensors."""
_VAE = ("decoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight", "decoder.middle.0.residual.")
"""Of an image autoencoder, and of Wan's (Qwen-Image, Anima)."""


def inspect_file(path: Path) -> Header:
    """The checked header of a model file."""
    return read_header(path)


def family_of(header: Header) -> str | None:
    """The family as `gguf_imagegen.modelfiles.traits` names it; None if this is no diffusion model."""
    if _is_lora(header):
        return None
    names = _full_names(header)

    def has(part: str) -> bool:
        return any(part in name for name in names)

    if has(f"{DIFFUSION}nerf_final_layer_conv."):
        return "chroma-radiance"
    if has(f"{DIFFUSION}joint_blocks."):
        return "sd3"
    if has(f"{DIFFUSION}transformer_blocks.0.img_mod.1.weight"):
        return "qwen-image"
    if has("llm_adapter.blocks.0.cross_attn.q_proj.weight"):
        return "anima"
    if has(f"{DIFFUSION}double_blocks.0.img_mlp.gate_proj.weight"):
        return "ovis-image"
    if has(f"{DIFFUSION}cap_embedder.0.weight"):
        width = _width(header, names, f"{DIFFUSION}cap_embedder.0.weight")
        return "lumina-2" if width == _LUMINA_2 else "z-image"
    if has(f"{DIFFUSION}layers.0.adaLN_sa_ln.weight"):
        return "ernie-image"
    if has(f"{DIFFUSION}double_stream_modulation_img.lin.weight"):
        return "flux2"
    if has("txt_in.individual_token_refiner."):
        return "hunyuan-video"
    if has(f"{DIFFUSION}double_blocks."):
        return _flux_kind(header, names)
    if has(f"{DIFFUSION}blocks.0.cross_attn.norm_k.weight"):
        return "wan"
    if has(f"{DIFFUSION}input_blocks.") or has("unet.down_blocks."):
        return _unet_kind(header, names)
    return None


def _is_lora(header: Header) -> bool:
    return any(_LORA.search(name) for name in header.tensors)


def _full_names(header: Header) -> dict[str, str]:
    """Names as sd.cpp sees them (a diffusion-only file gets the prefix) to the names in the file."""
    if any(name.startswith((DIFFUSION, "unet.")) for name in header.tensors):
        return {name: name for name in header.tensors}
    if any(_BARE_DIFFUSION.match(name) for name in header.tensors):
        return {DIFFUSION + name: name for name in header.tensors}
    return {name: name for name in header.tensors}


def _flux_kind(header: Header, names: Mapping[str, str]) -> str:
    if any("distilled_guidance_layer" in name for name in names):
        return "chroma"
    channels = _width(header, names, f"{DIFFUSION}img_in.weight")
    return {384: "flux-fill", 128: "flux-controls", 196: "flex-2"}.get(channels or 64, "flux")


def _width(header: Header, names: Mapping[str, str], name: str) -> int | None:
    """Inputs of a matrix, the elements of a vector; None if it is not there or has no axes."""
    tensor = header.tensors.get(names.get(name, ""))
    return tensor.shape[-1] if tensor and tensor.shape else None


_CONTEXTS = ("txt_in.weight", "cap_embedder.1.weight")


def context_width(header: Header) -> int | None:
    """How wide a diffusion model wants what its text encoder gives; None where its tensors do not say."""
    names = _full_names(header)
    widths = (_width(header, names, DIFFUSION + name) for name in _CONTEXTS)
    return next((width for width in widths if width), None)


def latent_channels(header: Header) -> int | None:
    """Channels of the latents that a VAE or TAESD decodes."""
    for name in (
        "decoder.conv_in.weight",
        "decoder.layers.0.weight",
        "decoder.layers.1.weight",
        "decoder.1.weight",
    ):
        found = next((t for key, t in header.tensors.items() if key.endswith(name)), None)
        if found is not None and len(found.shape) > 1:
            return found.shape[1]
    return None


def embedding_width(header: Header) -> int | None:
    """How wide a language model is."""
    found = (
        t for name, t in header.tensors.items() if name.endswith(("token_embd.weight", "embed_tokens.weight"))
    )
    return next((tensor.shape[-1] for tensor in found if tensor.shape), None)


def _unet_kind(header: Header, names: Mapping[str, str]) -> str:
    if any(f"{DIFFUSION}input_blocks.8.0.time_mixer.mix_factor" in name for name in names):
        return "svd"
    first = next(
        (names[n] for n in (f"{DIFFUSION}input_blocks.0.0.weight", "unet.conv_in.weight") if n in names), None
    )
    channels = header.tensors[first].shape[1] if first and len(header.tensors[first].shape) == 4 else 4
    suffix = {9: "-inpaint", 8: "-pix2pix"}.get(channels, "")
    if any(
        part in name for name in names for part in ("conditioner.embedders.1", "cond_stage_model.1", "te.1")
    ):
        return f"sdxl{suffix}"
    context = next((_width(header, names, name) for name in names if name.endswith("attn2.to_k.weight")), 768)
    return {1024: "sd2", 1280: "sdxl-refiner", 2048: "sdxl"}.get(context or 768, "sd1") + suffix


def component_of(header: Header) -> str:
    """A role of the protocol, "lora", "embedding" or "unknown"; a "model" is more than the diffusion part."""
    has = header.has
    if _is_lora(header):
        return "lora"
    if has("input_hint_block") or has("controlnet"):
        return "control_net"
    if family_of(header) is not None:
        rest = ("first_stage_model.", "text_encoders.", "vae.", "tae.", *_CLIP_IN_UNET_FILES)
        whole = any(name.startswith(rest) for name in header.tensors)
        return "model" if whole else "diffusion"
    if has("tae.encoder.layers.") or has("decoder.layers.") or "decoder.1.weight" in header.tensors:
        return "taesd"
    if any(has(part) for part in _VAE):
        return "vae"
    if has("v.blk.0.") or has("visual.blocks.0."):
        return "llm_vision"
    if has("vision_model.encoder.layers.0"):
        return "clip_vision"
    if has("text_model.encoder.layers.31.") or has("transformer.resblocks.31."):
        return "clip_g"
    if has("text_model.encoder.layers.0."):
        return "clip_l"
    if has("encoder.block.0.layer.0.SelfAttention") or has("enc.blk.0."):
        return "t5xxl"
    if has("model.layers.0.self_attn") or has("blk.0.attn_q") or has("embed_tokens.weight"):
        return "llm"
    if has("body.0.rdb1.conv1.weight") or has("model.1.sub.0.RDB1"):
        return "upscaler"
    if embedding_family(header) is not None:
        return "embedding"
    return "unknown"


def unfit_words(header: Header) -> str:
    """In words that follow a file's name, why it is no model to run here; empty if it is, or a part."""
    family = family_of(header)
    if family is not None and family in REFUSED:
        return f"it is {REFUSED[family]}"
    kind = kind_of(header.tensors) if family is None and component_of(header) == "unknown" else ""
    return f"it is {kind}" if kind else ""


def holds_vae(header: Header) -> bool:
    """A whole model's file with a full-size VAE in it."""
    return any(name.startswith(("first_stage_model.", "vae.")) for name in header.tensors)


# What must be there, by family: a role that satisfies it, or the beginning of a tensor's name in any file.
_IMAGE_DECODER = ("an image decoder (VAE)", ("vae", "taesd"), ("first_stage_model.", "vae.", "tae."))
_CLIP = ("a CLIP text encoder", ("clip_l",), _CLIP_IN_UNET_FILES)
_CLIP_G_XL = (
    "the CLIP-G text encoder",
    ("clip_g",),
    ("cond_stage_model.1.", "conditioner.embedders.1.", "te.1."),
)
_LLM = ("the language model that reads prompts (llm)", ("llm",), ("text_encoders.llm.",))
_T5 = ("the T5-XXL text encoder", ("t5xxl",), ("text_encoders.t5xxl.",))
_CLIP_L = ("the CLIP-L text encoder", ("clip_l",), ("text_encoders.clip_l.",))
_CLIP_G = ("the CLIP-G text encoder", ("clip_g",), ("text_encoders.clip_g.",))

_Need = tuple[str, tuple[str, ...], tuple[str, ...]]
_NEEDS: Mapping[str, tuple[_Need, ...]] = {
    "sd1": (_CLIP, _IMAGE_DECODER),
    "sd2": (_CLIP, _IMAGE_DECODER),
    "sdxl": (_CLIP, _CLIP_G_XL, _IMAGE_DECODER),
    "sd3": (_CLIP_L, _CLIP_G, _IMAGE_DECODER),
    "flux": (_CLIP_L, _T5, _IMAGE_DECODER),
    "flux-fill": (_CLIP_L, _T5, _IMAGE_DECODER),
    "flux-controls": (_CLIP_L, _T5, _IMAGE_DECODER),
    "flux2": (_LLM, _IMAGE_DECODER),
    "chroma": (_T5, _IMAGE_DECODER),
    "chroma-radiance": (_T5,),
    "ovis-image": (_LLM, _IMAGE_DECODER),
    "qwen-image": (_LLM, _IMAGE_DECODER),
    "z-image": (_LLM, _IMAGE_DECODER),
    "anima": (_LLM, _IMAGE_DECODER),
    "ernie-image": (_LLM, _IMAGE_DECODER),
}


def _needs(family: str) -> tuple[_Need, ...]:
    return _NEEDS.get(re.sub("-(inpaint|pix2pix)$", "", family), (_IMAGE_DECODER,))


def parts_needed(family: str) -> list[tuple[str, tuple[str, ...]]]:
    """What a family needs besides the diffusion part: in words, and the roles of which one satisfies it."""
    return [(words, roles) for words, roles, _ in _needs(family)]


def missing_parts(family: str, files: Mapping[Role, Header]) -> list[tuple[str, str]]:
    """What a set of files lacks: in words, and the role of a file that would give it."""
    return [
        (words, roles[0])
        for words, roles, prefixes in _needs(family)
        if not any(role in files for role in roles)
        and not any(name.startswith(prefixes) for header in files.values() for name in header.tensors)
    ]


def check_complete(family: str, files: Mapping[Role, Header]) -> None:
    """Raise MissingComponent, naming what is missing and the flag that gives it, if the set is not whole."""
    for words, role in missing_parts(family, files):
        raise MissingComponent(
            f"this {family} model lacks {words}; give it with --component {role}=FILE", param="model"
        )
    check_companions(family, files, {role: component_of(header) for role, header in files.items()})
    for role, header in files.items():
        if role in ("model", "diffusion"):
            _check_family(header, family)
        _check_types(header)
        _check_blocks(header)


def _check_family(header: Header, family: str) -> None:
    found = family_of(header)
    if found is not None and found != family:
        raise InvalidModelFile(
            f"{header.name}: this is a {found} model, not {family}; correct the family or name another file",
            param="model",
        )


_NO_WEIGHTS = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64"}


def _check_types(header: Header) -> None:
    """ggml cannot multiply by a matrix of these types, and ends the process when asked to."""
    refused = _NO_WEIGHTS | ({"F64"} if header.format == "gguf" else set())
    for tensor in header.tensors.values():
        if tensor.type in refused and sum(side > 1 for side in tensor.shape) > 1:
            raise InvalidModelFile(
                f"{header.name}: tensor {tensor.name[:100]!r} has type {tensor.type}, {WORDS}"
            )


_BLOCK = re.compile(
    r"((?:.*\.)?(?:double_blocks|single_blocks|joint_blocks|transformer_blocks|blk|layers)\.)(\d+)\.(.+)"
)


def _check_blocks(header: Header) -> None:
    """Blocks are numbered without a gap, and a block lacks nothing that all its neighbours have."""
    stacks: dict[str, dict[int, set[str]]] = {}
    for name in header.tensors:
        if name.startswith(("tae.", "decoder.layers", "encoder.layers")):
            continue
        if match := _BLOCK.fullmatch(name):
            if len(match[2]) > 4:
                raise InvalidModelFile(f"{header.name}: a block has the impossible number {match[2][:9]}")
            stacks.setdefault(match[1], {}).setdefault(int(match[2]), set()).add(match[3])
    for stack, blocks in stacks.items():
        gap = next((number for number in range(max(blocks) + 1) if number not in blocks), None)
        if gap is not None:
            raise MissingComponent(f"{header.name}: block {stack}{gap} is missing, the file is damaged")
    _check_heads(header)
    _check_ovis(header)


_ROTARY = 128  # sum of the rotary axes of every Flux-like family
_KEY_NORMS = ("double_blocks.0.txt_attn.norm.key_norm.scale", "single_blocks.0.norm.key_norm.scale")


def _check_heads(header: Header) -> None:
    """sd.cpp divides the hidden size by that of a key norm (`FluxRunner`): a wrong one ends the engine."""
    names = _full_names(header)
    if not any(name.startswith(f"{DIFFUSION}double_blocks.") for name in names):
        return
    heads = {_width(header, names, DIFFUSION + norm) for norm in _KEY_NORMS} - {None}
    hidden = header.tensors.get(names.get(f"{DIFFUSION}txt_in.weight", ""))
    if not heads:
        raise MissingComponent(f"{header.name}: no attention norm is there, the file is damaged")
    if heads != {_ROTARY} or (hidden and hidden.shape and hidden.shape[0] % _ROTARY):
        raise InvalidModelFile(
            f"{header.name}: its attention heads do not have size {_ROTARY}; get the file again"
        )


_OVIS_BLOCKS = {
    "double_blocks": [
        f"{side}_{part}.{kind}"
        for side in ("img", "txt")
        for part in ("mod.lin", "attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        for kind in ("weight", "bias")
    ]
    + [f"{side}_attn.norm.{part}_norm.scale" for side in ("img", "txt") for part in ("query", "key")],
    "single_blocks": [
        f"{part}.{kind}" for part in ("linear1", "linear2", "modulation.lin") for kind in ("weight", "bias")
    ]
    + ["norm.query_norm.scale", "norm.key_norm.scale"],
}
_OVIS_REST = ["txt_norm.scale"] + [
    f"{part}.{kind}"
    for part in (
        "img_in", "time_in.in_layer", "time_in.out_layer", "txt_in", "final_layer.linear",
        "final_layer.adaLN_modulation.1",
    )
    for kind in ("weight", "bias")
]  # fmt: skip
_OVIS_LLM = ("text_encoders.llm.model.embed_tokens.weight", "text_encoders.llm.model.norm.weight")


def _check_ovis(header: Header) -> None:
    """Every tensor that sd.cpp's Ovis graph reads is there: a missing one would end the engine."""
    if family_of(header) != "ovis-image":
        return
    names = _full_names(header)
    wanted = [DIFFUSION + name for name in _OVIS_REST]
    if any(name.startswith("text_encoders.llm.") for name in names):
        wanted += _OVIS_LLM
    for stack, parts in _OVIS_BLOCKS.items():
        numbers = {
            m[1] for name in names if (m := re.match(rf"{re.escape(DIFFUSION)}{stack}\.(\d+)\.", name))
        }
        wanted += [f"{DIFFUSION}{stack}.{number}.{part}" for number in numbers for part in parts]
    for name in wanted:
        if name not in names:
            raise MissingComponent(
                f"{header.name}: tensor {name.removeprefix(DIFFUSION)!r} is missing, the file is damaged"
            )
    width, context = (_width(header, names, n) for n in (_OVIS_LLM[0], f"{DIFFUSION}txt_in.weight"))
    if width is not None and width != context:
        raise InvalidModelFile(
            f"{header.name}: its text encoder gives {width} numbers, its transformer wants {context}"
        )
