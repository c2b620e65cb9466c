"""Memory given back to the system when a large picture or body is done with. Only glibc has to be told."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD = -3
"""As in glibc's malloc.h."""
LARGE = 1 << 20


def keep_large_blocks_apart() -> None:
    """Blocks of LARGE bytes and more are given back as soon as they are freed.

    Without this glibc keeps ever larger ones in its heaps, where a small one above them holds them fast.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Give back what lies free in the heaps. Takes milliseconds: call it in a thread."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
