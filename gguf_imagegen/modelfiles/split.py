"""A model that gguf-split of llama.cpp cut into several GGUF files: its parts, and how they are joined."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from gguf.constants import GGMLQuantizationType

from gguf_imagegen.modelfiles.header import Header, Layout, read_header
from gguf_imagegen.vocabulary.errors import InvalidModelFile

PIECE: Final = 8 << 20
_NAME: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_COUNTS: Final = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata
_COUNT_KEY: Final = struct.pack("<Q", len("split.count")) + b"split.count"
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 10: 8, 11: 8}
"""Bytes of GGUF's integers by type."""


@dataclass(frozen=True)
class Split:
    """The headers of all parts by their files, in order; `size` is about that of the whole, in bytes."""

    parts: dict[Path, Header]

    @property
    def size(self) -> int:
        return sum(header.size for header in self.parts.values())


def split_of(first: Path) -> Split | None:
    """The model of which this is the first part; None for another name.

    InvalidModelFile names the first part that is missing or wrong.
    """
    names = part_names(first.name)
    if not names:
        return None
    if first.name != names[0]:
        raise InvalidModelFile(f"{first.name}: give the first part, {names[0]}")
    missing = [name for name in names if not first.with_name(name).is_file()]
    if missing:
        raise InvalidModelFile(f"{first.name}: a part is missing beside it: {missing[0]}")
    parts = {path: read_header(path, split=True) for path in map(first.with_name, names)}
    _require_alike(parts)
    return Split(parts)


def part_names(name: str) -> tuple[str, ...]:
    """The names of all parts of the model of which this is one, folders before it included; else none."""
    match = _NAME.fullmatch(name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return ()
    suffix = name[match.end(3) :]
    return tuple(f"{match[1]}-{each:05}-of-{match[3]}{suffix}" for each in range(1, int(match[3]) + 1))


def joined(parts: Iterable[Header], name: str) -> Header:
    """What is known of the whole from the headers of its parts: its tensors, though not their places."""
    headers = tuple(parts)
    tensors = {each.name: each for header in headers for each in header.tensors.values()}
    return Header(name, "gguf", tensors, sum(header.size for header in headers))


def _require_alike(parts: dict[Path, Header]) -> None:
    alignments, tensors = set(), set[str]()
    for path, header in parts.items():
        if header.layout is None:
            raise InvalidModelFile(f"{path.name}: this part is no GGUF file")
        alignments.add(header.layout.alignment)
        if twice := tensors & header.tensors.keys():
            raise InvalidModelFile(f"{path.name}: another part has the tensor {min(twice)[:100]!r}, too")
        tensors |= header.tensors.keys()
    if len(alignments) > 1:
        raise InvalidModelFile(f"{next(iter(parts)).name}: its parts are aligned differently")


def join_parts(first: Path, target: Path, tell: Callable[[int, int], None]) -> None:
    """Write the whole model of which this is the first part; on the disk, and checked, when this returns."""
    split = split_of(first)
    if split is None:
        raise InvalidModelFile(f"{first.name}: this is no part of a split model")
    join(split, target, tell)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    read_header(target)


def join(split: Split, target: Path, tell: Callable[[int, int], None]) -> None:
    """Write all tensors with the metadata of the first part; `tell` gets the bytes done and their total."""
    first, layout = next((path, header.layout) for path, header in split.parts.items() if header.layout)
    with target.open("wb") as out:
        out.write(_head(first, layout, sum(len(header.tensors) for header in split.parts.values())))
        out.write(_records(split, layout.alignment))
        for path, header in split.parts.items():
            with path.open("rb") as file:
                for tensor in header.tensors.values():
                    out.write(b"\0" * (-out.tell() % layout.alignment))
                    _copy(file, tensor.offset, tensor.nbytes, out)
                    tell(min(out.tell(), split.size), split.size)
        out.write(b"\0" * (-out.tell() % layout.alignment))


def _head(first: Path, layout: Layout, tensors: int) -> bytes:
    """The counts and the metadata, which call the model whole: no part of it remains."""
    with first.open("rb") as file:
        magic, version, _, pairs = _COUNTS.unpack(file.read(_COUNTS.size))
        metadata = bytearray(file.read(layout.records - _COUNTS.size))
    at = metadata.find(_COUNT_KEY) + len(_COUNT_KEY)
    if at >= len(_COUNT_KEY):
        size = _SIZES[struct.unpack_from("<I", metadata, at)[0]]
        metadata[at + 4 : at + 4 + size] = bytes(size)
    return _COUNTS.pack(magic, version, tensors, pairs) + metadata


def _records(split: Split, alignment: int) -> bytes:
    return b"".join(_record(*each) for each in _placed(split, alignment))


def _placed(split: Split, alignment: int) -> Iterator[tuple[str, tuple[int, ...], str, int]]:
    """Name, shape, type and place of each tensor in the joined data."""
    place = 0
    for header in split.parts.values():
        for tensor in header.tensors.values():
            yield tensor.name, tensor.shape, tensor.type, place
            place += tensor.nbytes + -tensor.nbytes % alignment


def _record(name: str, shape: tuple[int, ...], kind: str, place: int) -> bytes:
    encoded = name.encode()
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return (
        struct.pack("<Q", len(encoded)) + encoded + dims
        + struct.pack("<IQ", GGMLQuantizationType[kind].value, place)
    )  # fmt: skip


def _copy(file: BinaryIO, start: int, count: int, out: BinaryIO) -> None:
    file.seek(start)
    while count:
        piece = file.read(min(PIECE, count))
        if not piece:
            raise InvalidModelFile(f"{Path(file.name).name}: it became shorter while it was read")
        out.write(piece)
        count -= len(piece)
