"""Names in LoRA files that the engine does not know, and how it would call the same tensors.

PEFT puts `base_model.model.` or nothing before a layer's name, and an adapter's name behind `lora_A`. LyCORIS
puts `lycoris_` before the model's own names; diffusers' `text_encoder.` is not found in U-Net models. A name
is tried in each spelling that the engine knows, and the first that leads to a tensor of the model is it.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj

from gguf_imagegen.modelfiles.engine_names import lora_name
from gguf_imagegen.modelfiles.header import Header, read_header

_PIECE = 8 << 20
_WRAPPER = "base_model.model."
_ADAPTER = re.compile(r"(\.lora_[AB])\.[^.]+(\.weight)$")
_LINEAR = re.compile(r"\.lora_linear_layer\.(up|down)\.weight$")
_FLAT = re.compile(r"(?:lycoris|lora_transformer)_")
_ENCODERS = {"text_encoder.": ("te.",), "text_encoder_2.": ("te2.", "te3."), "text_encoder_3.": ("te3.",)}
_PLACES = ("diffusion_model.", "te.")


@dataclass(frozen=True)
class Spelling:
    """What a tensor has to be called in a file, and what the engine then makes of that (`lora_name`)."""

    file: str
    engine: str


def spellings(lora: Header, family: str, targets: Container[str]) -> Mapping[str, Spelling]:
    """For each tensor the first of its spellings that changes one of `targets`, else its own name.

    Only safetensors can be written anew; in other files each name is as it is.
    """
    found = {name: _spelling(name, family, targets, lora.format) for name in lora.tensors}
    if len({each.file for each in found.values()}) == len(found):
        return found
    return {name: Spelling(name, lora_name(name, family)) for name in lora.tensors}


def _spelling(name: str, family: str, targets: Container[str], format: str) -> Spelling:
    own = Spelling(name, lora_name(name, family))
    if format != "safetensors" or _leads_to(own.engine, targets):
        return own
    others = (Spelling(each, lora_name(each, family)) for each in _other_spellings(name))
    return next((each for each in others if _leads_to(each.engine, targets)), own)


def _other_spellings(name: str) -> Iterator[str]:
    """The same name as the engine may know it."""
    bare = name
    while bare.startswith(_WRAPPER):
        bare = bare.removeprefix(_WRAPPER)
    bare = _LINEAR.sub(r".lora_\1.weight", _ADAPTER.sub(r"\1\2", bare))
    yield bare
    if _FLAT.match(bare):
        yield _FLAT.sub("lora_unet_", bare, count=1)
        return
    for encoder, places in _ENCODERS.items():
        if bare.startswith(encoder):
            yield from (place + bare.removeprefix(encoder) for place in places)
            return
    yield from (place + bare for place in _PLACES)


def _leads_to(engine: str, targets: Container[str]) -> bool:
    """Whether it changes a tensor of the model, or a piece of one."""
    layer = engine.rpartition(".")[0]
    return layer in targets or layer.rpartition(".")[0] in targets


def write_renamed(source: Path, names: Mapping[str, str], target: Path) -> None:
    """Copy a safetensors file with other names for its tensors; types, shapes and data stay as they are."""
    header = read_header(source)
    with source.open("rb") as file, target.open("wb") as copy:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        said = {
            names.get(name, name): {
                "dtype": tensor.type,
                "shape": tensor.shape,
                "data_offsets": (tensor.offset - start, tensor.offset - start + tensor.nbytes),
            }
            for name, tensor in header.tensors.items()
        }
        text = json.dumps(said).encode()
        text += b" " * (-len(text) % 8)
        copy.write(struct.pack("<Q", len(text)) + text)
        file.seek(start)
        copyfileobj(file, copy, _PIECE)
