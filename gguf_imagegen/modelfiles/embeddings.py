"""Textual inversions: files that give the text encoder of an SD1 or SD2 model vectors for a word of prompts.

AUTOMATIC1111 and its trainers write one tensor `emb_params`, diffusers one that is called as the word is; in
files for SDXL there are two, `clip_l` and `clip_g`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from gguf_imagegen.modelfiles.header import Header, TensorInfo, read_header
from gguf_imagegen.vocabulary.errors import InvalidModelFile

FAMILY_OF: Final[Mapping[tuple[int, ...], str]] = {(768,): "sd1", (1024,): "sd2", (768, 1280): "sdxl"}
"""By the widths of a file's tensors, which are those of the text encoders."""
TAKING: Final = ("sd1", "sd2")
"""Families whose prompts may name one. sd.cpp reads those of SDXL too, but lays the vectors for its two
encoders over each other (`load_embedding` in conditioner.hpp), so that CLIP-L gets pieces of CLIP-G's.
"""
MOST_VECTORS: Final = 75
"""As many as a chunk of a prompt has tokens."""
_TYPES: Final = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}


def base_family(family: str) -> str:
    """The family whose text encoders a variant has."""
    return family.split("-")[0]


def takes_embeddings(family: str) -> bool:
    return base_family(family) in TAKING


def embedding_family(header: Header) -> str | None:
    """For which models it is, None if this is no textual inversion."""
    tensors = header.tensors.values()
    if any(tensor.type not in _TYPES or len(tensor.shape) not in (1, 2) for tensor in tensors):
        return None
    return FAMILY_OF.get(tuple(sorted(tensor.shape[-1] for tensor in tensors)))


def vectors(header: Header) -> int:
    """Tokens that it stands for in a prompt."""
    return max(_rows(tensor) for tensor in header.tensors.values())


def width(header: Header) -> int:
    """Of its vectors; for SDXL those of CLIP-L."""
    return min(tensor.shape[-1] for tensor in header.tensors.values())


def misfit(made_for: str, family: str) -> str:
    """Why a model of `family` cannot use an embedding, in words that follow its name; empty if it can."""
    if made_for == "sdxl" == base_family(family):
        return "has no effect: with SDXL this engine mixes up the vectors of the two text encoders"
    if not takes_embeddings(family):
        return f"has no effect: {family} models take no textual inversions"
    if made_for != base_family(family):
        return f"has no effect: it is for {made_for} models, not {family}"
    return ""


def as_f32(path: Path) -> bytes:
    """The bytes of a safetensors file with its vectors in F32, the only type for which sd.cpp makes room.

    Raises InvalidModelFile.
    """
    header = read_header(path)
    if embedding_family(header) not in TAKING:
        raise InvalidModelFile(f"{path.name}: is no textual inversion for SD1 or SD2")
    (tensor,) = header.tensors.values()
    with path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.frombuffer(file.read(tensor.nbytes), _TYPES[tensor.type])
    floats = (raw.astype(np.uint32) << 16).view(np.float32) if tensor.type == "BF16" else raw
    data = floats.astype("<f4").tobytes()
    shape = [_rows(tensor), tensor.shape[-1]]
    entry = {"emb_params": {"dtype": "F32", "shape": shape, "data_offsets": [0, len(data)]}}
    text = json.dumps(entry).encode()
    return struct.pack("<Q", len(text)) + text + data


def naming(names: Iterable[str]) -> re.Pattern[str]:
    """Matches the names in a prompt, alone or as ComfyUI has it, `embedding:NAME`; group 1 is the name.

    Names are words of their own, in small or capital letters, as in AUTOMATIC1111.
    """
    longest_first = sorted(names, key=len, reverse=True)
    either = "|".join(map(re.escape, longest_first)) or r"\b\B"
    return re.compile(
        rf"(?<![\w-])(?:embedding:)?({either})(?:\.(?:safetensors|sft|pt|bin))?(?![\w-])", re.IGNORECASE
    )


def _rows(tensor: TensorInfo) -> int:
    return tensor.shape[0] if len(tensor.shape) == 2 else 1
