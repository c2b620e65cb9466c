"""The frames on the two pipes between server and worker: a length prefix, a JSON header, raw bytes.

    +----------------+----------------+---------------------+--------------+
    | header length  | blob length    | header (JSON)       | blob         |
    | uint32, big e. | uint32, big e. | {"kind": ..., ...}  | raw bytes    |
    +----------------+----------------+---------------------+--------------+

The header is one dataclass: `kind` is its class name, the rest are its fields. Bytes (pixels) are never in
the JSON: such a field holds `[offset, length]` of its place in the blob. Reading checks every value against
the type of its field, so what comes out is as well typed as what went in.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Final, Literal, TypeAlias, Union, cast, get_args, get_origin, get_type_hints

from gguf_imagegen.engine.protocol import GenerateSpec, ModelSpec, UpscaleSpec
from gguf_imagegen.events import EngineEvent

PREFIX: Final = struct.Struct(">II")
MAX_HEADER: Final = 4 << 20
MAX_BLOB: Final = 1 << 30

# How lines of the worker's stderr begin that say why something failed.
CRASH: Final = "CRASH: "
ERROR: Final = "ERROR: "
WARN: Final = "WARN: "


@dataclass(frozen=True)
class Load:
    """Command to the worker: load this model, answered by `Loading` events and `Loaded` or `Failed`."""

    model: ModelSpec


@dataclass(frozen=True)
class Generate:
    """Command to the worker: make these images, answered by events and `Done` or `Failed`."""

    spec: GenerateSpec


@dataclass(frozen=True)
class Upscale:
    """Command to the worker: enlarge this picture, answered by events and `Done` or `Failed`."""

    spec: UpscaleSpec


Command: TypeAlias = Load | Generate | Upscale


class FrameError(ValueError):
    """A frame is too long, or not what this protocol knows."""


def encode(message: EngineEvent | Command) -> bytes:
    """One frame, complete with its prefix."""
    blobs: list[bytes] = []
    header = json.dumps({"kind": type(message).__name__, **_plain_fields(message, blobs)}).encode()
    blob_length = sum(map(len, blobs))
    _check_lengths(len(header), blob_length)
    return b"".join([PREFIX.pack(len(header), blob_length), header, *blobs])


def decode_prefix(prefix: bytes) -> tuple[int, int]:
    """The lengths of header and blob that follow."""
    header_length, blob_length = PREFIX.unpack(prefix)
    _check_lengths(header_length, blob_length)
    return header_length, blob_length


def decode(header: bytes, blob: bytes) -> EngineEvent:
    """What the worker tells."""
    return cast(EngineEvent, _decode(get_args(EngineEvent), header, blob))


def decode_command(header: bytes, blob: bytes) -> Command:
    """What the server wants."""
    return cast(Command, _decode(get_args(Command), header, blob))


def _check_lengths(header: int, blob: int) -> None:
    if header > MAX_HEADER or blob > MAX_BLOB:
        raise FrameError(f"frame of {header} + {blob} bytes is over the limit of {MAX_HEADER} + {MAX_BLOB}")


def _plain_fields(value: object, blobs: list[bytes]) -> dict[str, object]:
    assert is_dataclass(value)
    return {each.name: _plain(getattr(value, each.name), blobs) for each in fields(value)}


def _plain(value: object, blobs: list[bytes]) -> object:
    """`value` as JSON can say it; bytes are appended to `blobs`."""
    match value:
        case bytes():
            blobs.append(value)
            return [sum(map(len, blobs[:-1])), len(value)]
        case Path():
            return str(value)
        case tuple():
            return [_plain(item, blobs) for item in value]
        case Mapping():
            return {key: _plain(item, blobs) for key, item in value.items()}
        case _ if is_dataclass(value):
            return _plain_fields(value, blobs)
        case _:
            return value


def _decode(kinds: tuple[type, ...], header: bytes, blob: bytes) -> object:
    try:
        content = json.loads(header)
    except ValueError as exc:
        raise FrameError("frame header is not JSON") from exc
    if not isinstance(content, dict):
        raise FrameError("frame header is not a JSON object")
    name = content.pop("kind", None)
    kind = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        raise FrameError(f"unknown kind of frame: {name!r}")
    return _typed_fields(kind, content, blob)


def _typed_fields(kind: type, content: dict[str, object], blob: bytes) -> object:
    hints = get_type_hints(kind)
    if content.keys() != hints.keys():
        raise FrameError(f"{kind.__name__}: fields {sorted(content)} instead of {sorted(hints)}")
    return kind(**{name: _typed(hint, content[name], blob) for name, hint in hints.items()})


def _typed(hint: object, value: object, blob: bytes) -> object:
    """The inverse of `_plain`, for a field declared as `hint`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        return _typed(next(arg for arg in args if arg is not NoneType), value, blob)
    if origin is Literal and any(type(value) is type(arg) and value == arg for arg in args):
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(args[0], item, blob) for item in value)
    if origin is Mapping and isinstance(value, dict):
        return {_typed(args[0], key, blob): _typed(args[1], item, blob) for key, item in value.items()}
    if hint is bytes:
        return _slice(value, blob)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) in (int, float):
        return float(cast(float, value))
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return _typed_fields(hint, value, blob)
    raise FrameError(f"a value of type {type(value).__name__} where {hint} is due")


def _slice(place: object, blob: bytes) -> bytes:
    match place:
        case [int(offset), int(length)] if 0 <= offset <= offset + length <= len(blob):
            return blob[offset : offset + length]
    raise FrameError(f"bytes at {place} of a blob of {len(blob)}")
