"""Parts of models that were made for others, or given in each other's place, are noticed before a load."""

from __future__ import annotations

import pytest

from gguf_imagegen.modelfiles.header import Header, TensorInfo
from gguf_imagegen.modelfiles.inspect import check_complete
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile

Shapes = dict[str, tuple[int, ...]]


def header(role: str, shapes: Shapes) -> Header:
    tensors = {name: TensorInfo(name, shape, "F16", 0, 2) for name, shape in shapes.items()}
    return Header(f"{role}.safetensors", "safetensors", tensors, 2)


CLIP = "text_model.encoder.layers.{}.self_attn.q_proj.weight"
TOKENS = "text_model.embeddings.token_embedding.weight"
CLIP_L: Shapes = {CLIP.format(0): (768, 768), TOKENS: (49408, 768)}
CLIP_G: Shapes = {CLIP.format(0): (1280, 1280), CLIP.format(31): (1280, 1280), TOKENS: (49408, 1280)}
T5: Shapes = {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096), "shared.weight": (32128, 4096)}
VAE: Shapes = {"decoder.conv_in.weight": (512, 16, 3, 3)}
WAN_VAE: Shapes = {
    "decoder.conv1.weight": (384, 16, 3, 3, 3), "decoder.middle.0.residual.0.gamma": (384, 1, 1, 1),
}  # fmt: skip
EMBEDDING = "model.embed_tokens.weight"
QWEN: Shapes = {EMBEDDING: (151936, 2560), "model.layers.0.self_attn.q_proj.weight": (1, 1)}
FLUX: Shapes = {
    "img_in.weight": (128, 64), "double_blocks.0.img_attn.proj.weight": (128, 128),
    "single_blocks.0.norm.key_norm.scale": (128,), "txt_in.weight": (128, 4096),
}  # fmt: skip
Z_IMAGE: Shapes = {"cap_embedder.0.weight": (2560,), "cap_embedder.1.weight": (3840, 2560)}
SETS: dict[str, dict[Role, Shapes]] = {
    "flux": {"diffusion": FLUX, "clip_l": CLIP_L, "t5xxl": T5, "vae": VAE},
    "z-image": {"diffusion": Z_IMAGE, "llm": QWEN, "vae": VAE},
    "qwen-image": {
        "diffusion": {"transformer_blocks.0.img_mod.1.weight": (1, 1), "txt_in.weight": (3072, 3584)},
        "llm": {"blk.0.attn_q.weight": (1, 1), "token_embd.weight": (152064, 3584)},
        "vae": WAN_VAE,
    },
}


def checked(family: str, changed: dict[Role, Shapes]) -> None:
    parts = {**SETS[family], **changed}
    check_complete(family, {role: header(role, shapes) for role, shapes in parts.items()})


@pytest.mark.parametrize("family", SETS)
def test_parts_of_one_family_are_taken(family: str) -> None:
    """Of any naming; an encoder that sees may bring its eyes."""
    checked(family, {})
    if "llm" in SETS[family]:
        checked(family, {"llm": {**SETS[family]["llm"], "visual.blocks.0.attn.proj.weight": (1, 1)}})


@pytest.mark.parametrize(
    ("family", "changed", "words"),
    [
        ("flux", {"vae": {"decoder.conv_in.weight": (512, 4, 3, 3)}}, "SDXL; flux needs that of SD 3"),
        ("flux", {"vae": WAN_VAE}, "that of Wan 2.1 and Qwen-Image; flux needs"),
        ("qwen-image", {"vae": VAE}, "that of SD 3 and FLUX.1; qwen-image needs that of Wan 2.1"),
        ("flux", {"clip_l": T5}, "clip_l.safetensors: this is a T5 text encoder, not a CLIP-L .* t5xxl=FILE"),
        ("flux", {"t5xxl": CLIP_L}, "this is a CLIP-L text encoder, not a T5 .* --component clip_l=FILE"),
        ("flux", {"clip_l": CLIP_G}, "this is a CLIP-G text encoder"),
        ("flux", {"vae": FLUX}, "this is a diffusion model, not a VAE"),
        ("flux", {"t5xxl": {**T5, "shared.weight": (256384, 4096)}}, "UMT5, the encoder of Wan"),
        ("flux", {"t5xxl": {**T5, "shared.weight": (32128, 1024)}}, "1024 wide"),
        ("flux", {"clip_l": {**CLIP_L, TOKENS: (49408, 1024)}}, "this CLIP is 1024 wide"),
        ("z-image", {"llm": {**QWEN, EMBEDDING: (151936, 4096)}}, "gives 4096 numbers.*wants 2560"),
        ("z-image", {"llm": T5}, "this is a T5 text encoder, not a language model"),
    ],
)  # fmt: skip
def test_a_part_of_another_model_is_named(family: str, changed: dict[Role, Shapes], words: str) -> None:
    """With what it is, and what to take."""
    with pytest.raises(InvalidModelFile, match=words):
        checked(family, changed)
