"""Whether the parts of a model were made for one another, as far as their headers tell.

sd.cpp passes over tensors that it does not look for, and ends its process on widths that it did not expect.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.vocabulary.engine import Role
from gguf_imagegen.vocabulary.errors import InvalidModelFile

_KINDS: Mapping[str, str] = {
    "clip_l": "a CLIP-L text encoder", "clip_g": "a CLIP-G text encoder", "t5xxl": "a T5 text encoder",
    "llm": "a language model", "llm_vision": "a vision projector", "clip_vision": "a CLIP image encoder",
    "vae": "a VAE", "taesd": "a tiny decoder (TAESD)", "lora": "a LoRA", "upscaler": "an upscaler",
    "control_net": "a ControlNet", "model": "a whole model", "diffusion": "a diffusion model",
}  # fmt: skip
_LANGUAGE = ("model.layers.0.self_attn", "blk.0.attn_q", "embed_tokens.weight")

# By family: the latents that its VAE makes, as (kind, channels).
_FLUX_VAE, _FLUX2_VAE, _SD_VAE, _WAN_VAE = ("image", 16), ("image", 32), ("image", 4), ("video", 16)
_LATENTS: Mapping[str, tuple[str, int]] = {
    "sd1": _SD_VAE, "sd2": _SD_VAE, "sdxl": _SD_VAE, "sd3": _FLUX_VAE, "flux": _FLUX_VAE,
    "chroma": _FLUX_VAE, "ovis": _FLUX_VAE, "z": _FLUX_VAE, "flux2": _FLUX2_VAE, "ernie": _FLUX2_VAE,
    "qwen": _WAN_VAE, "anima": _WAN_VAE,
}  # fmt: skip
_VAES: Mapping[tuple[str, int], str] = {
    _SD_VAE: "that of SD 1, SD 2 and SDXL", _FLUX_VAE: "that of SD 3 and FLUX.1",
    _FLUX2_VAE: "that of FLUX.2", _WAN_VAE: "that of Wan 2.1 and Qwen-Image",
    ("video", 48): "that of Wan 2.2",
}  # fmt: skip

# The matrix that reads the text, and how many outputs of the language model's width it takes at once.
_READERS: Mapping[str, tuple[str, int]] = {
    "flux2": ("txt_in.weight", 3), "ovis-image": ("txt_in.weight", 1), "qwen-image": ("txt_in.weight", 1),
    "z-image": ("cap_embedder.1.weight", 1), "ernie-image": ("text_proj.weight", 1),
    "anima": ("llm_adapter.blocks.0.cross_attn.k_proj.weight", 1),
}  # fmt: skip
_T5_VOCABULARY, _T5_WIDTH = 32_128, 4096


def check_companions(family: str, files: Mapping[Role, Header], components: Mapping[Role, str]) -> None:
    """Raise InvalidModelFile, naming the file, for a part in a wrong place or of another family.

    `components` says what each file is by itself (`inspect.component_of`).
    """
    for role, header in files.items():
        _check_place(role, header, components[role])
    if vae := files.get("vae"):
        _check_vae(vae, family)
    if t5 := files.get("t5xxl"):
        _check_t5(t5)
    if clip := files.get("clip_l"):
        _check_clip(clip, "CLIP-L", 1024 if family.startswith("sd2") else 768, family)
    if clip := files.get("clip_g"):
        _check_clip(clip, "CLIP-G", 1280, family)
    if llm := files.get("llm"):
        _check_llm(llm, family, files)


def _check_place(role: Role, header: Header, component: str) -> None:
    if component in (role, "unknown") or {role, component} == {"model", "diffusion"}:
        return
    if role == "control_net":
        return  # compared with the model where it is named
    if role == "llm" and any(header.has(part) for part in _LANGUAGE):
        return  # one that sees comes with its eyes
    if component in _KINDS and role in _KINDS:
        place = f"; give it with --component {component}=FILE" if component not in ("lora", "model") else ""
        raise InvalidModelFile(
            f"{header.name}: this is {_KINDS[component]}, not {_KINDS[role]}{place}", param="model"
        )


def _check_vae(header: Header, family: str) -> None:
    wanted, found = _LATENTS.get(family.split("-")[0]), _latents(header)
    if wanted and found and found != wanted:
        raise InvalidModelFile(
            f"{header.name}: this VAE is {_VAES.get(found, f'one of {found[1]} channels')}; {family} needs"
            f" {_VAES[wanted]}",
            param="model",
        )


def _latents(header: Header) -> tuple[str, int] | None:
    """The kind of VAE and its channels, by the first convolution of the decoder."""
    for name, kind in (("decoder.conv_in.weight", "image"), ("decoder.conv1.weight", "video")):
        shape = next((t.shape for n, t in header.tensors.items() if n.endswith(name)), ())
        if len(shape) == 5:
            return "video", shape[1]
        if len(shape) == 4 and kind == "image":
            return kind, shape[1]
    return None


def _check_t5(header: Header) -> None:
    shape = _shape(header, r"(shared|token_embd|embed_tokens)\.weight$")
    if len(shape) != 2:
        return
    if shape[0] > 2 * _T5_VOCABULARY:
        raise InvalidModelFile(f"{header.name}: this is UMT5, the encoder of Wan; take T5-XXL", param="model")
    if shape[1] != _T5_WIDTH:
        raise InvalidModelFile(
            f"{header.name}: this T5 is {shape[1]} wide, T5-XXL is {_T5_WIDTH}; take that one", param="model"
        )


def _check_clip(header: Header, role: str, wanted: int, family: str) -> None:
    shape = _shape(header, r"token_embedding\.weight$")
    if len(shape) == 2 and shape[1] != wanted:
        raise InvalidModelFile(
            f"{header.name}: this CLIP is {shape[1]} wide, the {role} of {family} is {wanted}; take that one",
            param="model",
        )


def _check_llm(header: Header, family: str, files: Mapping[Role, Header]) -> None:
    name, several = _READERS.get(family, ("", 0))
    main = files.get("diffusion") or files.get("model")
    reader = _shape(main, f"(^|\\.){re.escape(name)}$") if main and name else ()
    embedding = _shape(header, r"(token_embd|embed_tokens)\.weight$")
    if len(reader) == 2 == len(embedding) and reader[1] != several * embedding[1]:
        raise InvalidModelFile(
            f"{header.name}: this language model gives {embedding[1]} numbers,"
            f" {main.name if main else ''} wants {reader[1] // several}; take the one of its size",
            param="model",
        )


def _shape(header: Header, pattern: str) -> tuple[int, ...]:
    """Of the first tensor whose name fits; empty if none does."""
    return next((t.shape for name, t in header.tensors.items() if re.search(pattern, name)), ())
