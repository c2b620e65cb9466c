"""Kernels that scripts/engine adds to ggml: how a process is told which to use, and which those are here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

VARIABLE: Final = "GGML_PACKED"
"""Read once by the library: off, f32, bf16 or int8, at most; not there: the fastest that is near to f32."""
NAMES: Final = """
import ctypes
import stable_diffusion_cpp.stable_diffusion_cpp as low
low._lib.ggml_packed_kernels.restype = ctypes.c_char_p
print(low._lib.ggml_packed_kernels().decode())
"""


def with_kernels(environment: Mapping[str, str], kernels: str) -> dict[str, str]:
    """The environment of a process that is to use these; `auto` leaves it as it is."""
    return {**environment, **({} if kernels == "auto" else {VARIABLE: kernels})}


@lru_cache(maxsize=8)
def kernels_here(kernels: str, timeout: float = 60) -> str:
    """Those that a worker will use, e.g. "AVX2 f32"; "" for ggml's own.

    Asked in a process of its own, once, which takes about 0.3 s: native code may end its process.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-c", NAMES],
            capture_output=True, text=True, timeout=timeout, check=True,
            env=with_kernels(os.environ, kernels),
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""
    return (asked.stdout.splitlines() or [""])[-1].strip()
