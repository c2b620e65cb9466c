"""Model files in another type: what may be asked for, how large the result becomes, and where it is from."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, cast, get_args

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gguf_imagegen.modelfiles.header import Header, TensorInfo, read_header
from gguf_imagegen.modelfiles.inspect import component_of, unfit_words
from gguf_imagegen.vocabulary.engine import WeightType
from gguf_imagegen.vocabulary.errors import ConversionFailed, InvalidModelFile, InvalidRequest

TYPES: Final[tuple[WeightType, ...]] = get_args(WeightType)
CONVERTIBLE: Final = frozenset(
    {"model", "diffusion", "vae", "taesd", "clip_l", "clip_g", "clip_vision", "t5xxl", "llm", "llm_vision"}
)
PADDING: Final = "gguf_imagegen.padding"
PIECE: Final = 8 << 20
_COUNTS: Final = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata
_TEXT: Final = 8


def weight_type(name: str) -> WeightType:
    """The type of this name, in small or capital letters; InvalidRequest lists all."""
    if name.lower() not in TYPES:
        raise InvalidRequest(f"type: there is no {name!r}; choose one of {', '.join(TYPES)}", param="type")
    return cast(WeightType, name.lower())


def checked_rules(text: str) -> str:
    """`PATTERN=TYPE,…` with types the engine knows; it would pass over wrong ones, or end."""
    return ",".join(map(_rule, text.split(","))) if text.strip() else ""


def _rule(text: str) -> str:
    pattern, separator, name = text.strip().rpartition("=")
    if not separator or not pattern:
        raise InvalidRequest(f"rules: {text!r} is not PATTERN=TYPE", param="rules")
    try:
        re.compile(pattern)
    except re.error as exc:
        raise InvalidRequest(f"rules: {pattern!r} is no regular expression: {exc}", param="rules") from exc
    if name.lower() not in TYPES:
        raise InvalidRequest(
            f"rules: there is no type {name!r}; choose one of {', '.join(TYPES)}", param="rules"
        )
    return f"{pattern}={name.lower()}"


def convertible(path: Path) -> Header:
    """The header of a file that can be converted; InvalidModelFile says why another one cannot."""
    header = read_header(path)
    if words := unfit_words(header):
        raise InvalidModelFile(f"{header.name}: {words}")
    component = component_of(header)
    if component not in CONVERTIBLE:
        what = "its kind is not known" if component == "unknown" else f"it is of the kind {component}"
        raise InvalidModelFile(f"{header.name}: {what}; only models, VAEs and text encoders can be converted")
    return header


def converted_bytes(header: Header, kind: WeightType) -> int:
    """About what the file takes in this type, in memory or on disk; some tensors stay as they are."""
    return sum(_bytes(tensor, kind) for tensor in header.tensors.values())


def _bytes(tensor: TensorInfo, kind: WeightType) -> int:
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    if len(tensor.shape) < 2 or tensor.shape[-1] % block:
        return tensor.nbytes
    return math.prod(tensor.shape) // block * size


def stamp(path: Path, facts: Mapping[str, str]) -> None:
    """Put texts into the metadata of a GGUF file that has none, as the engine's converter leaves it.

    Its data move by as much, in place: there may be no room for a second copy. A file that is cut off in
    the middle of this is damaged.
    """
    layout = read_header(path).layout
    with path.open("r+b") as file:
        magic, version, tensors, there = _COUNTS.unpack(file.read(_COUNTS.size))
        if layout is None or there:
            raise ConversionFailed(
                f"{path.name}: the engine wrote metadata of its own, which is not expected"
            )
        texts = _padded(facts, layout.alignment)
        records = file.read(layout.data - _COUNTS.size)
        _move(file, layout.data, len(texts))
        file.seek(0)
        file.write(_COUNTS.pack(magic, version, tensors, len(facts) + 1) + texts + records)


def _padded(facts: Mapping[str, str], alignment: int) -> bytes:
    """Metadata of a length that keeps the data aligned, whatever the records behind them take."""
    pairs = [*facts.items(), (PADDING, "")]
    short = sum(len(_pair(*pair)) for pair in pairs)
    pairs[-1] = (PADDING, " " * (-short % alignment))
    return b"".join(_pair(*pair) for pair in pairs)


def _pair(key: str, value: str) -> bytes:
    return _text(key) + struct.pack("<I", _TEXT) + _text(value)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _move(file: BinaryIO, start: int, by: int) -> None:
    """Move all bytes from `start` on towards the end, the last ones first."""
    end = file.seek(0, 2)
    while end > start:
        begin = max(start, end - PIECE)
        file.seek(begin)
        piece = file.read(end - begin)
        file.seek(begin + by)
        file.write(piece)
        end = begin
