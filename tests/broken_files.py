"""Broken model files, each made from a good GGUF and broken in one named way."""

from __future__ import annotations

import struct
from collections.abc import Callable

Break = Callable[[bytes], bytes]

VERSION, TENSOR_COUNT, KEY_COUNT, FIRST_KEY = 4, 8, 16, 24  # byte offsets, see ggml's docs/gguf.md


def _put(offset: int, code: str, value: int) -> Break:
    size = struct.calcsize(code)
    return lambda good: good[:offset] + struct.pack(f"<{code}", value) + good[offset + size :]


def _first_tensor(good: bytes) -> int:
    """Where the record of the first tensor begins: the length of its name."""
    (key_count,) = struct.unpack_from("<Q", good, KEY_COUNT)
    position = FIRST_KEY
    for _ in range(key_count):
        position = _after_text(good, position)
        (kind,) = struct.unpack_from("<I", good, position)
        position = _after_text(good, position + 4) if kind == 8 else position + 4 + _SIZES[kind]
    return position


_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _after_text(good: bytes, position: int) -> int:
    return position + 8 + int(struct.unpack_from("<Q", good, position)[0])


def _tensor_fields(good: bytes, position: int) -> tuple[int, int, int]:
    """Offsets of a tensor's number of dimensions, of its type, and of the next tensor."""
    dims = _after_text(good, position)
    kind = dims + 4 + 8 * int(struct.unpack_from("<I", good, dims)[0])
    return dims, kind, kind + 12


def _zero_dimensions(good: bytes) -> bytes:
    dims, _, _ = _tensor_fields(good, _first_tensor(good))
    return _put(dims, "I", 0)(good)


def _zero_length_axis(good: bytes) -> bytes:
    dims, _, _ = _tensor_fields(good, _first_tensor(good))
    return _put(dims + 4, "Q", 0)(good)


def _overflowing_shape(good: bytes) -> bytes:
    dims, _, _ = _tensor_fields(good, _first_tensor(good))
    return _put(dims + 4, "Q", 1 << 63)(good)


def _unknown_type(good: bytes) -> bytes:
    _, kind, _ = _tensor_fields(good, _first_tensor(good))
    return _put(kind, "I", 4242)(good)


def _huge_offset(good: bytes) -> bytes:
    _, kind, _ = _tensor_fields(good, _first_tensor(good))
    return _put(kind + 4, "Q", 1 << 62)(good)


def _huge_name(good: bytes) -> bytes:
    return _put(_first_tensor(good), "Q", 1 << 40)(good)


def _duplicate_name(good: bytes) -> bytes:
    """The second tensor becomes the first once more."""
    first = _first_tensor(good)
    _, _, second = _tensor_fields(good, first)
    _, _, third = _tensor_fields(good, second)
    return good[:second] + good[first:second] + good[third:]


BROKEN: dict[str, Break] = {
    "truncated header": lambda good: good[:1000],
    "truncated magic": lambda good: good[:3],
    "truncated data": lambda good: good[: len(good) // 2],
    "zero length": lambda good: b"",
    "wrong magic": lambda good: b"GGML" + good[4:],
    "huge tensor count": _put(TENSOR_COUNT, "Q", (1 << 63) + 5),
    "huge kv count": _put(KEY_COUNT, "Q", (1 << 64) - 1),
    "huge string length": _put(FIRST_KEY, "Q", 1 << 62),
    "huge tensor name": _huge_name,
    "text file": lambda good: b"<!DOCTYPE html><html>404: not found</html>\n" * 100,
    "version 99": _put(VERSION, "I", 99),
    "no tensors": _put(TENSOR_COUNT, "Q", 0),
    "zero dims": _zero_dimensions,
    "zero length axis": _zero_length_axis,
    "overflowing shape": _overflowing_shape,
    "unknown type": _unknown_type,
    "huge offset": _huge_offset,
    "duplicate names": _duplicate_name,
}
