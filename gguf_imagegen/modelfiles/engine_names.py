"""Names of tensors as sd.cpp has them once a file is read, by which it finds what a LoRA changes.

Trainers name the same matrix in a dozen ways; sd.cpp rewrites those it knows (`convert_tensor_name` in
name_conversion.cpp), in LoRAs and models alike, and passes over the rest in silence. These are its rules, the
odd ones included; those of image decoders are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

DIFFUSION = "model.diffusion_model."
_ENCODERS = ("cond_stage_model.1.", "cond_stage_model.", "conditioner.embedders.", "text_encoders.")
DECODERS = ("first_stage_model.", "vae.")
_LORA_BEGINNINGS = ("lora.", "lora_", "lycoris_", "lycoris.", "")
_UNDERLINED = ("unet_", "te_", "te1_", "te2_", "te3_", "vae_")

_ENDS = {
    **{f".lora_{part}.weight": f".weight.lora_{part}" for part in ("down", "mid", "up")},
    **{f"{mark}lora.{part}.weight": f".weight.lora_{part}"
       for mark in "._" for part in ("down", "mid", "up")},
    **{f".lora_{old}{mid}.weight": f".weight.lora_{new}"
       for old, new in (("A", "down"), ("B", "up")) for mid in ("", ".default")},
    ".lora_linear": ".weight.alpha",
    ".diff_b": ".bias.diff",
    **{f".{part}": f".weight.{part}" for part in (
        "alpha", "scale", "diff", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
        "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
    )},
}  # fmt: skip
"""Ends of names in LoRA files, and what is made of them: the changed tensor's name, then the part."""

_KEPT = (
    "self_attn", "out_proj", "q_proj", "k_proj", "v_proj", "to_k", "to_q", "to_v", "to_out", "text_model",
    "down_blocks", "mid_block", "up_block", "proj_in", "proj_out", "transformer_blocks",
    "single_transformer_blocks", "single_blocks", "diffusion_model", "cond_stage_model", "first_stage_model",
    "conv_in", "conv_out", "lora_down", "lora_mid", "lora_up", "diff_b", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", ".lokr_w1", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2",
    ".lokr_w2_a", ".lokr_w2_b", "time_emb_proj", "conv_shortcut", "time_embedding", "conv_norm_out",
    "double_blocks", "txt_attn", "img_attn", "input_blocks", "output_blocks", "middle_block",
    "skip_connection", "emb_layers", "in_layers", "out_layers", "add_q_proj", "add_k_proj", "add_v_proj",
    "add_out_proj", "ff_context", "norm_added_q", "norm_added_v", "to_add_out", "txt_mod", "img_mod",
    "txt_mlp", "img_mlp", "proj_mlp", "wi_0", "wi_1", "norm1_context", "x_embedder",
)  # fmt: skip
"""Words whose underlines are their own, where all others of a name are dots."""

_PREFIXES = {
    "diffusion_model.": DIFFUSION, "unet.": DIFFUSION, "transformer.": DIFFUSION,
    "vae.": "first_stage_model.",
    "text_encoder.2.": "cond_stage_model.1.transformer.",
    "text_encoder.": "cond_stage_model.transformer.",
    "te.": "cond_stage_model.transformer.",
    "conditioner.embedders.0.": "cond_stage_model.",
    "conditioner.embedders.1.": "cond_stage_model.1.",
    "te1.": "cond_stage_model.transformer.",
    "te2.": "cond_stage_model.1.transformer.",
    "te3.": "text_encoders.t5xxl.transformer.",
}  # fmt: skip

_FLUX = {"flux", "flux-fill", "flux-controls", "flex-2", "chroma", "chroma-radiance", "ovis-image"}


def lora_name(name: str, family: str) -> str:
    """The name in the engine of a LoRA file's tensor: that of the tensor it changes, a dot, and the part."""
    rest = name.removeprefix("lora.")
    begin = next(begin for begin in _LORA_BEGINNINGS if rest.startswith(begin))
    rest = rest.removeprefix(begin)
    underlined = begin == "lycoris_" or rest.startswith(_UNDERLINED)
    end = next((end for end in _ENDS if rest.endswith(end)), "")
    rest = rest.removesuffix(end) + _ENDS.get(end, "")
    rest = rest.replace(".processor", "", 1)
    if rest.startswith(("transformer_blocks", "single_transformer_blocks")):
        rest = f"transformer.{rest}"
    if underlined or _is_unet(family):
        rest = _dotted(rest)
    return model_name(rest, family)


def model_name(name: str, family: str) -> str:
    """The name in the engine of a model's tensor, from that in the file with its role's prefix before it."""
    old = next((old for old in _PREFIXES if name.startswith(old)), "")
    new = "text_encoders.clip_l.transformer." if old == "te1." and family in _FLUX else _PREFIXES.get(old, "")
    name = new + name.removeprefix(old)
    if name.startswith(DIFFUSION):
        return DIFFUSION + _diffusion_name(name.removeprefix(DIFFUSION), family)
    for prefix in _ENCODERS:
        if name.startswith(prefix):
            return prefix + _encoder_name(name.removeprefix(prefix))
    return name


def role_prefix(role: str, family: str) -> str | None:
    """What the engine puts before the names in a file of this role; None where no LoRA reaches."""
    encoders = ("cond_stage_model.", "cond_stage_model.1.") if _is_unet(family) else (
        "text_encoders.clip_l.", "text_encoders.clip_g.",
    )  # fmt: skip
    return {
        "model": "",
        "diffusion": DIFFUSION,
        "clip_l": f"{encoders[0]}transformer.",
        "clip_g": f"{encoders[1]}transformer.",
        "t5xxl": "text_encoders.t5xxl.transformer.",
        "llm": "text_encoders.llm.",
    }.get(role)


def _is_unet(family: str) -> bool:
    return family.startswith(("sd1", "sd2", "sdxl"))


def _dotted(name: str) -> str:
    kept: set[int] = set()
    for word in _KEPT:
        start = name.find(word)
        while start >= 0:
            kept.update(start + at for at, letter in enumerate(word) if letter == "_")
            start = name.find(word, start + len(word))
    return "".join("." if letter == "_" and at not in kept else letter for at, letter in enumerate(name))


def _diffusion_name(name: str, family: str) -> str:
    if _is_unet(family):
        return _unet_name(name, family.startswith("sdxl"))
    if family == "anima":
        return f"net.{name.removeprefix('net.')}"
    table = _TABLES.get("flux" if family in _FLUX else family)
    return table.renamed(name) if table else name


# -- transformers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stack:
    """The first `count` blocks of a stack, their parts by old and new name.

    `new#1` is the second of the pieces that together make up `new`.
    """

    old: str
    new: str
    count: int
    parts: Mapping[str, str]


@dataclass(frozen=True)
class _Table:
    """Old and new names of a transformer's layers."""

    stacks: tuple[_Stack, ...]
    rest: Mapping[str, str]

    def renamed(self, name: str) -> str:
        match = re.match(r"(?P<layer>.+?)\.(?P<kind>weight|bias)(?P<tail>.*)", name)
        if match is None:
            return name
        new = self._layer(match["layer"])
        if new is None:
            return name
        layer, _, piece = new.partition("#")
        if layer.endswith(".scale"):
            return layer + match["tail"] if match["kind"] == "weight" else name
        return f"{layer}.{match['kind']}" + (f".{piece}" if piece else "") + match["tail"]

    def _layer(self, layer: str) -> str | None:
        for stack in self.stacks:
            match = re.match(rf"{stack.old}\.(0|[1-9]\d*)\.(.+)", layer)
            if match and int(match[1]) < stack.count and match[2] in stack.parts:
                return f"{stack.new}.{match[1]}.{stack.parts[match[2]]}"
        return self.rest.get(layer)


def _fused(*parts: str, into: str) -> dict[str, str]:
    return {part: into + (f"#{number}" if number else "") for number, part in enumerate(parts)}


def _attention(old: str, image: str, text: str, qkv: str = "qkv") -> dict[str, str]:
    """The projections of an attention over both streams."""
    return {
        **_fused(f"{old}.to_q", f"{old}.to_k", f"{old}.to_v", into=f"{image}.{qkv}"),
        **_fused(f"{old}.add_q_proj", f"{old}.add_k_proj", f"{old}.add_v_proj", into=f"{text}.{qkv}"),
        f"{old}.to_out.0": f"{image}.proj",
        f"{old}.to_add_out": f"{text}.proj",
    }


_FLUX_TABLE = _Table(
    (
        _Stack("transformer_blocks", "double_blocks", 19, {
            "norm1.linear": "img_mod.lin",
            "norm1_context.linear": "txt_mod.lin",
            **_attention("attn", "img_attn", "txt_attn"),
            "attn.norm_q": "img_attn.norm.query_norm.scale",
            "attn.norm_k": "img_attn.norm.key_norm.scale",
            "attn.norm_added_q": "txt_attn.norm.query_norm.scale",
            "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
            "ff.net.0.proj": "img_mlp.0",
            "ff.net.2": "img_mlp.2",
            "ff_context.net.0.proj": "txt_mlp.0",
            "ff_context.net.2": "txt_mlp.2",
        }),
        _Stack("single_transformer_blocks", "single_blocks", 38, {
            "norm.linear": "modulation.lin",
            **_fused("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", into="linear1"),
            "attn.norm_q": "norm.query_norm.scale",
            "attn.norm_k": "norm.key_norm.scale",
            "proj_out": "linear2",
        }),
    ),
    {
        **{
            f"time_text_embed.{old}.linear_{number}": f"{new}.{layer}"
            for old, new in (
                ("timestep_embedder", "time_in"),
                ("text_embedder", "vector_in"),
                ("guidance_embedder", "guidance_in"),
            )
            for number, layer in ((1, "in_layer"), (2, "out_layer"))
        },
        "context_embedder": "txt_in",
        "x_embedder": "img_in",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    },
)  # fmt: skip

_SD3_TABLE = _Table(
    (
        _Stack("transformer_blocks", "joint_blocks", 38, {
            "norm1.linear": "x_block.adaLN_modulation.1",
            "norm1_context.linear": "context_block.adaLN_modulation.1",
            **_attention("attn", "x_block.attn", "context_block.attn"),
            **_attention("attn2", "x_block.attn2", "context_block.attn2"),
            "attn.norm_q": "x_block.attn.ln_q",
            "attn.norm_k": "x_block.attn.ln_k",
            "attn.norm_added_q": "context_block.attn.ln_q",
            "attn.norm_added_k": "context_block.attn.ln_k",
            "attn2.norm_q": "x_block.attn2.ln_q",
            "attn2.norm_k": "x_block.attn2.ln_k",
            "ff.net.0.proj": "x_block.mlp.fc1",
            "ff.net.2": "x_block.mlp.fc2",
            "ff_context.net.0.proj": "context_block.mlp.fc1",
            "ff_context.net.2": "context_block.mlp.fc2",
        }),
    ),
    {
        "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
        "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
        "pos_embed.proj": "x_embedder.proj",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    },
)  # fmt: skip

_Z_IMAGE_PARTS = {
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "attention.to_out.0": "attention.out",
    **_fused("attention.to_q", "attention.to_k", "attention.to_v", into="attention.qkv"),
}
_Z_IMAGE_TABLE = _Table(
    tuple(
        _Stack(stack, stack, count, _Z_IMAGE_PARTS)
        for stack, count in (("noise_refiner", 2), ("context_refiner", 2), ("layers", 30))
    ),
    {
        "all_x_embedder.2-1": "x_embedder",
        **{f"all_final_layer.2-1.{part}": f"final_layer.{part}" for part in ("linear", "adaLN_modulation.1")},
    },
)
_TABLES = {"flux": _FLUX_TABLE, "flux2": _FLUX_TABLE, "sd3": _SD3_TABLE, "z-image": _Z_IMAGE_TABLE}


# -- U-Nets -------------------------------------------------------------------------------------------

_UNET_LAYERS = {
    f"{old}.{kind}": f"{new}.{kind}"
    for old, new in (
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
    )
    for kind in ("weight", "bias")
}
_XL_LAYERS = {
    f"add_embedding.linear_{number}.{kind}": f"label_emb.0.{2 * number - 2}.{kind}"
    for number in (1, 2)
    for kind in ("weight", "bias")
}
_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
)


def _unet_name(name: str, xl: bool) -> str:
    whole = _UNET_LAYERS.get(name) or (_XL_LAYERS.get(name) if xl else None)
    if whole:
        return whole
    if "resnets" in name:
        name = _replaced(name, _RESNET)
    if re.search(r"(down|up|mid)_block|output_blocks\.2\.1\.conv", name):
        name = _replaced(name, _XL_BLOCKS if xl else _UNET_BLOCKS)
    if xl:
        name = _replaced(name, (("to_out.weight", "to_out.0.weight"), ("to_out.bias", "to_out.0.bias")))
    return name


def _replaced(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """Each old text by its new one, once, in this order."""
    for old, new in pairs:
        name = name.replace(old, new, 1)
    return name


def _unet_blocks(xl: bool) -> Iterator[tuple[str, str]]:
    for i in range(3 if xl else 4):
        for j in range(2):
            yield f"down_blocks.{i}.resnets.{j}.", f"input_blocks.{3 * i + j + 1}.0."
            if i > 0 if xl else i < 3:
                yield f"down_blocks.{i}.attentions.{j}.", f"input_blocks.{3 * i + j + 1}.1."
        for j in range(4 if xl else 3):
            yield f"up_blocks.{i}.resnets.{j}.", f"output_blocks.{3 * i + j}.0."
            if i < 2 or not xl:
                yield f"up_blocks.{i}.attentions.{j}.", f"output_blocks.{3 * i + j}.1."
        if i < 3:
            yield f"down_blocks.{i}.downsamplers.0.conv.", f"input_blocks.{3 * i + 3}.0.op."
            yield f"up_blocks.{i}.upsamplers.0.", f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}."
    if xl:
        yield "output_blocks.2.1.conv.", "output_blocks.2.2.conv."
    yield "mid_block.attentions.0.", "middle_block.1."
    for j in range(2):
        yield f"mid_block.resnets.{j}.", f"middle_block.{2 * j}."


_UNET_BLOCKS, _XL_BLOCKS = tuple(_unet_blocks(False)), tuple(_unet_blocks(True))


# -- text encoders ------------------------------------------------------------------------------------

_T5 = (
    ("enc.", "encoder."), ("blk.", "block."), ("output_norm.", "final_layer_norm."),
    ("attn_q.", "layer.0.SelfAttention.q."), ("attn_k.", "layer.0.SelfAttention.k."),
    ("attn_v.", "layer.0.SelfAttention.v."), ("attn_o.", "layer.0.SelfAttention.o."),
    ("attn_norm.", "layer.0.layer_norm."), ("ffn_norm.", "layer.1.layer_norm."),
    ("ffn_up.", "layer.1.DenseReluDense.wi_1."), ("ffn_down.", "layer.1.DenseReluDense.wo."),
    ("ffn_gate.", "layer.1.DenseReluDense.wi_0."),
    ("attn_rel_b.", "layer.0.SelfAttention.relative_attention_bias."), ("token_embd.", "shared."),
)  # fmt: skip
_LLM = (
    ("token_embd.", "model.embed_tokens."), ("blk.", "model.layers."), ("attn_q.", "self_attn.q_proj."),
    ("attn_k.", "self_attn.k_proj."), ("attn_v.", "self_attn.v_proj."), ("attn_q_norm.", "self_attn.q_norm."),
    ("attn_k_norm.", "self_attn.k_norm."), ("attn_output.", "self_attn.o_proj."),
    ("attn_norm.", "input_layernorm."), ("ffn_down.", "mlp.down_proj."), ("ffn_gate.", "mlp.gate_proj."),
    ("ffn_up.", "mlp.up_proj."), ("ffn_norm.", "post_attention_layernorm."), ("output_norm.", "model.norm."),
)  # fmt: skip
_OPEN_CLIP_BLOCK = {
    "attn.in_proj_bias": "self_attn.in_proj.bias",
    "attn.in_proj_weight": "self_attn.in_proj.weight",
    **{
        f"{old}.{kind}": f"{new}.{kind}"
        for old, new in (
            ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
        )
        for kind in ("weight", "bias")
    },
}  # fmt: skip


def _encoder_name(name: str) -> str:
    if "t5xxl" in name:
        return _replaced(name, _T5)
    if "llm" in name:
        return name if "llm.visual" in name else _replaced(name, _LLM)
    match = re.fullmatch(r"model\.transformer\.resblocks\.(\d+)\.(.+)", name)
    if match and match[2] in _OPEN_CLIP_BLOCK:
        return f"transformer.text_model.encoder.layers.{match[1]}.{_OPEN_CLIP_BLOCK[match[2]]}"
    return name
