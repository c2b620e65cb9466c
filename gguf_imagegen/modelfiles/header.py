"""Headers of model files, read without trusting a single number in them.

A malformed file ends the engine's process, so nothing is handed to it before this module has read it.
GGUF: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; safetensors:
https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import stat
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import BinaryIO, Literal

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from gguf_imagegen.modelfiles.formats import WORDS, foreign_format
from gguf_imagegen.modelfiles.strangers import HEAD, words_for
from gguf_imagegen.vocabulary.errors import InvalidModelFile

# Each bounds the time of reading to well under a second; the largest real files have a third of it.
MAX_TENSORS = 20_000
MAX_KEYS = 10_000
MAX_STRING = 1 << 20
MAX_ARRAY = 2_000_000
MAX_LISTED_STRINGS = 1_000_000  # in all arrays together
MAX_NAME = 128
MAX_DIMS = 4
NEWEST_TYPE = 40  # NVFP4: the last that the engine's ggml knows, it aborts on later ones
_TYPES_TO_COME = 64
_DROPPED_TYPES = frozenset({4, 5, 31, 32, 33, 36, 37, 38})  # Q4_0_4_4, IQ4_NL_4_4 and their kin
MAX_JSON = 8 << 20
SAFETENSORS = frozenset({".safetensors", ".sft"})
"""Suffixes, in small letters, of files that have no magic number of their own."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SAFETENSORS_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I64": 8, "I32": 4, "I16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """`shape` is outermost first, as in numpy and PyTorch; `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Layout:
    """Where the parts of a GGUF file begin: the records of its tensors, and (aligned) their data."""

    records: int
    data: int
    alignment: int


@dataclass(frozen=True)
class Header:
    """What a model file says of itself. `name` is the bare file name; only GGUF has a `layout`.

    `metadata` are the texts of safetensors' `__metadata__`.
    """

    name: str
    format: Literal["gguf", "safetensors"]
    tensors: dict[str, TensorInfo]
    size: int
    layout: Layout | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def quantization(self) -> dict[str, float]:
        """Share of the bytes by tensor type, largest first."""
        mix: Counter[str] = Counter()
        for tensor in self.tensors.values():
            mix[tensor.type] += tensor.nbytes
        total = mix.total() or 1
        return {kind: nbytes / total for kind, nbytes in mix.most_common()}

    def has(self, part: str) -> bool:
        """Some tensor's name contains `part`, as sd.cpp tests it."""
        return any(part in name for name in self.tensors)


def read_header(path: Path, *, split: bool = False) -> Header:
    """Read and check a header; InvalidModelFile says what is wrong with the file.

    A part of a split GGUF is wrong, too, unless `split` asks for one.

    Nothing but a file is opened: a pipe would block, a device never ends.
    """
    try:
        if not path.is_dir() and not stat.S_ISREG(path.stat().st_mode):
            raise InvalidModelFile(f"{path.name}: it is a pipe or a device, not a file", param="model")
        with path.open("rb") as file:
            return parse_header(file, path.name, path.stat().st_size, split=split)
    except OSError as exc:
        raise _bad(path.name, f"it cannot be read ({exc.strerror})") from exc


def parse_header(file: BinaryIO, name: str, size: int, *, split: bool = False) -> Header:
    """The header of an open file of `size` bytes, of which nothing behind the header is read."""
    head = file.read(HEAD)
    file.seek(0)
    if size == 0:
        raise _bad(name, "the file is empty")
    safetensors = _begins_as_safetensors(head)  # its length may look like any text's first letters
    if not safetensors and (words := words_for(head)):
        raise InvalidModelFile(f"{name}: {words}", param="model")
    if head.startswith(b"GGUF"):
        gguf = _Gguf(file, name, size, split)
        header = Header(name, "gguf", gguf.read(), size, gguf.layout)
    elif PurePath(name).suffix.lower() in SAFETENSORS or safetensors:
        tensors, metadata = _safetensors(file, name, size)
        header = Header(name, "safetensors", tensors, size, metadata=metadata)
    else:
        raise _bad(name, "it is neither a GGUF nor a safetensors file")
    if not header.tensors and not split:
        raise _bad(name, "it holds no tensors")
    return header


def _begins_as_safetensors(head: bytes) -> bool:
    """The length of a JSON object, and its brace: as files of a hub's cache are, whose names say nothing."""
    length = struct.unpack("<Q", head[:8])[0] if len(head) > 8 else 0
    return head[8:9] == b"{" and 2 <= length <= MAX_JSON


def _bad(name: str, reason: str) -> InvalidModelFile:
    return InvalidModelFile(f"{name}: {reason}; get the file again, or name another one", param="model")


class _Gguf:
    """A cursor over a GGUF header that can neither leave the file nor be made to read much."""

    def __init__(self, file: BinaryIO, name: str, size: int, split: bool) -> None:
        self._split = split
        self._file = file
        self._name = name
        self._size = size
        self._strings_left = MAX_LISTED_STRINGS
        self.layout: Layout | None = None

    def read(self) -> dict[str, TensorInfo]:
        self._take(4)
        version = self._number("I")
        if version not in (2, 3):
            raise self._bad(f"GGUF version {version} is unknown")
        tensor_count, key_count = self._number("Q"), self._number("Q")
        if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
            raise self._bad(f"it claims {tensor_count} tensors and {key_count} keys, which cannot be")
        alignment = 32
        for _ in range(key_count):
            key = self._string()
            value = self._value(self._number("I"))
            if key == "general.alignment":
                alignment = value if isinstance(value, int) else 0
            if key == "split.count" and isinstance(value, int) and value > 1 and not self._split:
                raise InvalidModelFile(
                    f"{self._name}: it is one of {value} parts of a model, which the engine does not join;"
                    " join them with gguf-imagegen convert FIRST-PART OUT.gguf, or take a file of one piece",
                    param="model",
                )
        if alignment not in {1 << shift for shift in range(3, 21)}:
            raise self._bad("its alignment is not a power of two")
        records = self._file.tell()
        raw = [self._tensor() for _ in range(tensor_count)]
        start = -(-self._file.tell() // alignment) * alignment
        self.layout = Layout(records, start, alignment)
        return self._placed(raw, start, alignment)

    def _tensor(self) -> TensorInfo:
        name = self._string(MAX_NAME)
        dims = self._number("I")
        if not 1 <= dims <= MAX_DIMS:
            raise self._bad(f"tensor {name!r} has {dims} dimensions")
        shape = tuple(self._number("Q") for _ in range(dims))[::-1]
        kind = self._number("I")
        offset = self._number("Q")
        if kind in _DROPPED_TYPES or NEWEST_TYPE < kind < _TYPES_TO_COME:
            raise InvalidModelFile(
                f"{self._name}: tensor {name[:100]!r} has the type {kind} of GGML, which the engine does not"
                " know; take another quantisation, such as Q4_K or Q8_0",
                param="model",
            )
        if kind not in GGML_QUANT_SIZES or kind > NEWEST_TYPE:
            raise self._bad(f"tensor {name!r} has the unknown type {kind}")
        elements = math.prod(shape)
        if not 0 < elements < 1 << 48:
            raise self._bad(f"tensor {name!r} has the impossible shape {shape}")
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if shape[-1] % block:
            raise self._bad(f"tensor {name!r}: rows of {shape[-1]} do not fit its type")
        nbytes = elements // block * block_bytes
        return TensorInfo(name, shape, GGMLQuantizationType(kind).name, offset, nbytes)

    def _placed(self, raw: list[TensorInfo], start: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for tensor in raw:
            if tensor.name in tensors:
                raise self._bad(f"tensor {tensor.name!r} is there twice")
            if tensor.offset % alignment or start + tensor.offset + tensor.nbytes > self._size:
                raise self._bad(f"tensor {tensor.name!r} lies beyond its end, the file is cut short")
            tensors[tensor.name] = TensorInfo(
                tensor.name, tensor.shape, tensor.type, start + tensor.offset, tensor.nbytes
            )
        return tensors

    def _value(self, kind: int) -> object:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._bad(f"a value has the unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if count > MAX_ARRAY:
            raise self._bad(f"an array claims {count} items")
        if item in _SCALARS:
            self._skip(struct.calcsize(_SCALARS[item]) * count)
        elif item == _STRING:
            self._skip_strings(count)
        else:
            raise self._bad(f"an array has items of the unknown type {item}")
        return None

    def _skip_strings(self, count: int) -> None:
        self._strings_left -= count
        if self._strings_left < 0:
            raise self._bad("its arrays claim too many texts")
        read, unpack = self._file.read, struct.Struct("<Q").unpack
        for _ in range(count):  # called hundreds of thousands of times: nothing but two reads
            prefix = read(8)
            length = unpack(prefix)[0] if len(prefix) == 8 else -1
            if not 0 <= length <= MAX_STRING or len(read(length)) != length:
                raise self._bad("a text in a list is too long, or the file is cut short")

    def _number(self, code: str) -> int:
        size = struct.calcsize(code)
        return int(struct.unpack(f"<{code}", self._take(size))[0]) if code not in "fd" else self._float(size)

    def _float(self, size: int) -> int:
        self._take(size)
        return 0

    def _string(self, most: int = MAX_STRING) -> str:
        length = self._number("Q")
        if length > most:
            raise self._bad(f"a text claims {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _take(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) != count:
            raise self._bad("it ends in the middle of its header, the file is cut short")
        return data

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise self._bad("it ends in the middle of its header, the file is cut short")
        self._file.seek(count, 1)

    def _bad(self, reason: str) -> InvalidModelFile:
        return _bad(self._name, reason)


def _safetensors(file: BinaryIO, name: str, size: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(MAX_JSON, size - 8):
        raise _bad(name, "it is not a safetensors file, or it is cut short")
    try:
        content = json.loads(file.read(length))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        said = content.pop("__metadata__", None)
        said = said if isinstance(said, dict) else {}
        metadata = {key: text for key, text in said.items() if isinstance(text, str)}
        if len(content) > MAX_TENSORS:
            raise _bad(name, f"it claims {len(content)} tensors")
        _refuse_foreign(name, {key: str(value["dtype"]) for key, value in content.items()})
        tensors = {key: _safetensor(name, key, value, 8 + length, size) for key, value in content.items()}
        return tensors, metadata
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _bad(name, "its header is damaged") from exc


def _refuse_foreign(file: str, types: dict[str, str]) -> None:
    words = foreign_format(types)
    strange = next((name for name, kind in types.items() if kind not in _SAFETENSORS_BYTES), None)
    if not words and strange is not None:
        words = f"{types[strange][:20]} (tensor {strange[:100]!r})"
    if words:
        raise InvalidModelFile(f"{file}: its weights are {words}, {WORDS}", param="model")


def _safetensor(file: str, name: str, value: dict[str, object], start: int, size: int) -> TensorInfo:
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list) and isinstance(kind, str)):
        raise TypeError("fields of the wrong type")
    if not all(type(number) is int and number >= 0 for number in [*shape, *offsets]) or len(offsets) != 2:
        raise ValueError("numbers out of range")
    begin, end = offsets
    if len(shape) > 8 or math.prod(shape) * _SAFETENSORS_BYTES[kind] != end - begin or start + end > size:
        raise _bad(file, f"tensor {name[:100]!r} lies beyond its end, the file is cut short")
    return TensorInfo(name, tuple(shape), kind, start + begin, end - begin)
