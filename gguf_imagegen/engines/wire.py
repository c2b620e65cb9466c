"""The frames on the two pipes between server and worker: a length (uint32, big endian), then msgpack.

Messages are the tagged structs of the vocabulary: `LoadSpec` and the tasks go to the worker, events come
back. Reading checks every value against the type of its field, so what comes out is as well typed as what
went in.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from gguf_imagegen.vocabulary.engine import LoadSpec, Task
from gguf_imagegen.vocabulary.events import EngineEvent

PREFIX: Final = struct.Struct(">I")
MAX_FRAME: Final = 1 << 30

SCRATCH: Final = "GGUF_IMAGEGEN_SCRATCH"
"""The variable with the worker's folder for short-lived files, which goes when it ends, even killed."""

# How lines of the worker's stderr begin that say why something failed.
CRASH: Final = "CRASH: "
ERROR: Final = "ERROR: "
WARN: Final = "WARN: "

Command: TypeAlias = LoadSpec | Task
"""Answered by events and `Done` (`Loaded` after a `LoadSpec`), or by `Failed`."""


class FrameError(ValueError):
    """A frame is too long, or not what this protocol knows."""


def encode(message: EngineEvent | Command) -> bytes:
    """One frame, complete with its prefix."""
    frame = bytearray(PREFIX.size)
    _ENCODER.encode_into(message, frame, PREFIX.size)
    length = len(frame) - PREFIX.size
    _check_length(length)
    PREFIX.pack_into(frame, 0, length)
    return bytes(frame)


def decode_prefix(prefix: bytes) -> int:
    """The length of the message that follows."""
    (length,) = PREFIX.unpack(prefix)
    _check_length(length)
    return int(length)


def decode(message: bytes) -> EngineEvent:
    """What the worker tells."""
    try:
        return _EVENTS.decode(message)
    except msgspec.DecodeError as exc:
        raise FrameError(f"no event: {exc}") from exc


def decode_command(message: bytes) -> Command:
    """What the server wants."""
    try:
        return _COMMANDS.decode(message)
    except msgspec.DecodeError as exc:
        raise FrameError(f"no command: {exc}") from exc


def _check_length(length: int) -> None:
    if length > MAX_FRAME:
        raise FrameError(f"frame of {length} bytes is over the limit of {MAX_FRAME}")


def plain(value: object) -> object:
    """For `msgspec`: paths are text on the wire, and any mapping is a map."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value))


def typed(kind: type, value: object) -> object:
    """For `msgspec`: the way back of `plain`."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise TypeError(kind)


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=plain)
_EVENTS: Final[msgspec.msgpack.Decoder[EngineEvent]] = msgspec.msgpack.Decoder(EngineEvent, dec_hook=typed)
_COMMANDS: Final[msgspec.msgpack.Decoder[Command]] = msgspec.msgpack.Decoder(Command, dec_hook=typed)
