"""Names of text encoders that sd.cpp reads, for files made by a converter that named them otherwise.

The all-in-one SD3 and FLUX files that were made for llama-box keep their encoders as `cond_stage_model.*`.
sd.cpp looks for those of these families under `text_encoders.*` only (`SD3CLIPEmbedder` and
`FluxCLIPEmbedder` in conditioner.hpp) and otherwise makes a picture that has nothing to do with the prompt.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from gguf.constants import GGMLQuantizationType

from gguf_imagegen.machine.files import keep_names
from gguf_imagegen.modelfiles.header import MAX_NAME, Header, Layout, TensorInfo, read_header
from gguf_imagegen.modelfiles.inspect import family_of
from gguf_imagegen.vocabulary.errors import DiskFull, InvalidModelFile

PIECE = 8 << 20
OLD = "cond_stage_model."
_SD3 = {"": "clip_l", "1": "clip_g", "2": "t5xxl"}
_FLUX = {"": "clip_l", "1": "t5xxl"}
_ENCODERS: Mapping[str, Mapping[str, str]] = {
    "sd3": _SD3, "flux": _FLUX, "flux-fill": _FLUX, "flux-controls": _FLUX, "flex-2": _FLUX,
}  # fmt: skip
RENAMED_FAMILIES = frozenset(_ENCODERS)
_CLIP = ("transformer.text_model.embeddings.token_embedding.weight",)
_READ: Mapping[str, tuple[str, ...]] = {
    "clip_l": _CLIP,
    "clip_g": _CLIP,
    "t5xxl": ("transformer.shared.weight", "transformer.token_embd.weight"),
}
"""One of these stands in each encoder that sd.cpp can read, after `text_encoders.NAME.`."""

Progress = Callable[[int, int], None]


def needs_renaming(header: Header) -> bool:
    """True for a file whose text encoders sd.cpp would pass over because of their names."""
    return family_of(header) in RENAMED_FAMILIES and any(name.startswith(OLD) for name in header.tensors)


def rename_text_encoders(original: Path, target: Path, on_progress: Progress) -> None:
    """Copy a model file with its text encoders named as sd.cpp reads them.

    Metadata, types, shapes and data stay as they are. `target` appears when it is whole, until then
    there is `.NAME.part` beside it, which the next attempt replaces; nobody else may be writing it.
    `on_progress` is told the bytes written and their total. InvalidModelFile says why a file cannot be
    renamed, DiskFull that there is no room.
    """
    header = read_header(original)
    if header.layout is None:
        raise InvalidModelFile(f"{header.name}: only GGUF files can be renamed, this one is {header.format}")
    names = new_names(header)
    partial = target.with_name(f".{target.name}.part")
    try:
        with original.open("rb") as source, partial.open("wb") as copy:
            _write(source, copy, header, header.layout, names, on_progress)
        _compare(header, read_header(partial), names)
        partial.replace(target)
        keep_names(target.parent)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"{target.name}: the disk is full; free {header.size >> 20} MiB, try again"
            ) from exc
        raise InvalidModelFile(f"{target.name}: it cannot be written ({exc.strerror})") from exc
    finally:
        partial.unlink(missing_ok=True)


def renamed(header: Header) -> Header:
    """The header that a file has after its renaming."""
    tensors = {new: replace(header.tensors[old], name=new) for old, new in new_names(header).items()}
    return replace(header, tensors=tensors)


def new_names(header: Header) -> dict[str, str]:
    """The name that each tensor gets, by its name in the file; InvalidModelFile if none is to change."""
    family = family_of(header)
    if not needs_renaming(header):
        raise InvalidModelFile(
            f"{header.name}: there is nothing to rename in this {family or 'file without a diffusion'} model;"
            f" only SD3 and FLUX files with {OLD}* need it"
        )
    encoders = _ENCODERS[str(family)]
    names = {name: _new_name(header.name, name, encoders) for name in header.tensors}
    new = set(names.values())
    if len(new) != len(names):
        raise InvalidModelFile(f"{header.name}: it holds text encoders under both names, the file is damaged")
    long = next((name for name in new if len(name.encode()) >= MAX_NAME), None)
    if long is not None:
        raise InvalidModelFile(f"{header.name}: the name {long[:60]!r}… becomes too long for the engine")
    for encoder in encoders.values():
        prefix = f"text_encoders.{encoder}."
        there = any(name.startswith(prefix) for name in new)
        if there and not any(prefix + name in new for name in _READ[encoder]):
            raise InvalidModelFile(f"{header.name}: its {encoder} has names that the engine cannot read")
    return names


def _new_name(file: str, name: str, encoders: Mapping[str, str]) -> str:
    if not name.startswith(OLD):
        return name
    number, _, rest = name.removeprefix(OLD).partition(".")
    if not number.isdecimal():
        number, rest = "", name.removeprefix(OLD)
    if number not in encoders:
        raise InvalidModelFile(f"{file}: text encoder {number[:9]} is one that its family does not have")
    return f"text_encoders.{encoders[number]}.transformer.{rest.removeprefix('transformer.')}"


def _write(
    source: BufferedReader,
    copy: BinaryIO,
    header: Header,
    layout: Layout,
    names: Mapping[str, str],
    on_progress: Progress,
) -> None:
    """The metadata as it is, the new records, the data as they are; on the disk when this returns."""
    records = b"".join(_records(header.tensors.values(), layout.data, names))
    padding = bytes(-(layout.records + len(records)) % layout.alignment)
    total = layout.records + len(records) + len(padding) + header.size - layout.data
    written = 0
    for part in (
        _pieces(source, 0, layout.records),
        (records, padding),
        _pieces(source, layout.data, header.size - layout.data),
    ):
        for piece in part:
            copy.write(piece)
            written += len(piece)
            on_progress(written, total)
    copy.flush()
    os.fsync(copy.fileno())


def _records(tensors: Iterable[TensorInfo], data: int, names: Mapping[str, str]) -> Iterator[bytes]:
    """GGUF's description of each tensor; offsets count from `data`, axes go from the innermost out."""
    for tensor in tensors:
        name = names[tensor.name].encode()
        yield struct.pack("<Q", len(name)) + name
        yield struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        yield struct.pack("<IQ", GGMLQuantizationType[tensor.type].value, tensor.offset - data)


def _pieces(file: BufferedReader, start: int, count: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(PIECE, count)))
    file.seek(start)
    while count:
        size = file.readinto(buffer[:count])
        if not size:
            raise OSError(0, "the file was truncated")
        yield buffer[:size]
        count -= size


def _compare(old: Header, new: Header, names: Mapping[str, str]) -> None:
    """The copy says the same of every tensor, except for its name."""

    def told(header: Header, tensor: TensorInfo) -> tuple[tuple[int, ...], str, int]:
        return tensor.shape, tensor.type, tensor.offset - (header.layout.data if header.layout else 0)

    before = [(names[name], told(old, tensor)) for name, tensor in old.tensors.items()]
    if before != [(name, told(new, tensor)) for name, tensor in new.tensors.items()]:
        raise InvalidModelFile(f"{old.name}: the renamed copy differs from it; try again")
