"""Whether what Python believes of a C library's structs and enums is what the library was built with."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def layout_faults(kind: Any, init: Any, defaults: Mapping[str, object]) -> Iterator[str]:
    """Compare a struct with what its `*_init` writes: the C struct's whole size, and these defaults.

    `init` zeroes the struct first: in a buffer of 0xAA its end can be seen.
    """
    size = ctypes.sizeof(kind)
    margin = 256
    buffer = (ctypes.c_uint8 * (size + margin))(*([0xAA] * (size + margin)))
    init(ctypes.byref(buffer))
    written = len(bytes(buffer).rstrip(b"\xaa"))
    if not size - ctypes.alignment(kind) < written <= size:
        yield f"{kind.__name__} has {size} bytes here, about {written} in the library"
    params = kind.from_buffer(buffer)
    for path, expected in defaults.items():
        value: Any = params
        for name in path.split("."):
            value = getattr(value, name)
        if value != expected:
            yield f"{kind.__name__}.{path} is {value} instead of {expected}"


def name_faults(names: Iterable[str], name_of: Any) -> Iterator[str]:
    """Compare names, in the order of a C enum, with those that the library gives its numbers."""
    name_of.argtypes, name_of.restype = [ctypes.c_int], ctypes.c_char_p
    for number, name in enumerate(names):
        actual = name_of(number).decode()
        if _plain(actual) != _plain(name):
            yield f"{name} is called {actual} by the library"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
