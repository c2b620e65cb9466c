"""Memory given back to the system when a large picture or body is done with. Only glibc has to be told."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

M_MMAP_THRESHOLD = -3
"""As in glibc's malloc.h."""
LARGE = 1 << 20


def keep_large_blocks_apart() -> None:
    """Blocks of LARGE bytes and more are given back as soon as they are freed.

    Without this glibc keeps ever larger ones in its heaps, where a small one above them holds them fast.
    """
    if (mallopt := _of_libc("mallopt")) is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Give back what lies free in the heaps. Takes milliseconds: call it in a thread."""
    if (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


def _of_libc(name: str) -> Any:
    """None where there is no such function: in another libc, or on Windows, which has none."""
    return None if sys.platform == "win32" else getattr(ctypes.CDLL(None), name, None)
