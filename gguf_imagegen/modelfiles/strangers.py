"""Files that are no model, or one that the engine does not run: what each is, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable

HEAD = 512
"""Bytes from a file's beginning that tell what it is."""
_PICKLE = (
    "it is a PyTorch checkpoint (.ckpt, .pt, .pth, .bin), which can run code and is never opened; take the"
    " model as safetensors or GGUF"
)
_WEB_PAGE = (
    "it is a web page, saved in the place of the model; download the file itself, signed in if its page asks"
    " for that"
)
_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (
        b"version https://git-lfs",
        "it is a Git LFS pointer of a few lines, not the file; run 'git lfs pull', or download the file",
    ),
    (b"<", _WEB_PAGE),
    (
        b"{",
        "it is JSON (a configuration, an index of parts, an error message); name the file of weights",
    ),
    (b"\x89HDF", "it is an HDF5 file of Keras; take the model as safetensors or GGUF"),
    (b"lmgg", "it is of GGML's days before GGUF; take a newer conversion"),
    (b"tjgg", "it is of GGML's days before GGUF; take a newer conversion"),
    (b"\x1f\x8b", "it is an archive (gzip); unpack it"),
    (b"7z\xbc\xaf", "it is an archive (7z); unpack it"),
    (b"Rar!", "it is an archive (RAR); unpack it"),
    (b"\x89PNG", "it is a picture; name the model file"),
    (b"\xff\xd8\xff", "it is a picture; name the model file"),
    (b"RIFF", "it is a picture or a sound; name the model file"),
)


def words_for(head: bytes) -> str:
    """What a file is, with what to do, from its first HEAD bytes; empty for what could be a damaged model."""
    if head.startswith(b"PK\x03\x04"):
        torch = b"data.pkl" in head or b"archive/" in head
        return _PICKLE if torch else "it is an archive (ZIP, as PyTorch's checkpoints are), not a model"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _PICKLE
    if head[:4] == b"GGUF" and head[4:7] == b"\0\0\0" and head[7:8] in (b"\2", b"\3"):
        return (
            "it is a big-endian GGUF, which the engine does not read; take the usual one, or turn it with"
            " gguf_convert_endian.py of llama.cpp"
        )
    text = head.lstrip(b"\xef\xbb\xbf\r\n\t ")
    words = next((words for begin, words in _BEGINNINGS if text.startswith(begin)), "")
    return words or _message(text)


def _message(head: bytes) -> str:
    """A line of text, such as a server's refusal that was saved under the model's name."""
    line = head.partition(b"\n")[0].strip()
    if not re.fullmatch(rb"[\x20-\x7e]{8,}", line):
        return ""
    return f"it is a text ({line[:60].decode()!r}), not a model; download the file again"


# What is told by a tensor's name, wherever it stands; the first that fits.
_KINDS: tuple[tuple[str, str], ...] = (
    (r"\bblocks\.\d+\.(self_attn|cross_attn)\.(norm_[qk]|[qkvo])\.", "Wan, which makes videos"),
    (r"\bpatchify_proj\.|\bvideo_patch", "LTX-Video"),
    (r"\bblocks\.\d+\.attn\.(qkv|proj)_[xy]\.", "Mochi, which makes videos"),
    (r"\bpatch_embed\.text_proj\.", "CogVideoX"),
    (r"\bdouble_stream_blocks\.|\bcaption_projection\.0\.linear\.", "HiDream"),
    (r"\bdouble_layers\.\d+\.|\bjoint_transformer_blocks\.", "AuraFlow"),
    (r"\b(net\.)?blocks\.\d+\.(self|cross)_attn\.(q|k|v|output)_proj\.", "Cosmos"),
    (r"\bref_image_patch_embedder\.", "OmniGen2"),
    (r"\bclip_txt_(mapper|pooled_mapper)\.|\beffnet_mapper\.", "Stable Cascade"),
    (r"\btext_embedding_padding$", "Hunyuan-DiT"),
    (r"\bblocks\.\d+\.scale_shift_table|\badaln_single\.linear\.", "PixArt, Sana or one of their kin"),
)  # fmt: skip
_DIFFUSERS = re.compile(
    r"^(single_transformer_blocks\.|transformer_blocks\.\d+\.(attn|norm1)\.|down_blocks\.|up_blocks\.|mid_block\.)"
)


def kind_of(names: Iterable[str]) -> str:
    """In words that follow "it is", what a model of no family that the engine runs is; empty if unknown."""
    names = tuple(names)
    for pattern, words in _KINDS:
        if any(re.search(pattern, name) for name in names):
            return f"{words}: a family that this server does not run"
    if any(_DIFFUSERS.match(name) for name in names):
        return (
            "a model with the tensor names of diffusers, which the engine does not read; take the single file"
            " of its makers or of ComfyUI, or a GGUF"
        )
    return ""
