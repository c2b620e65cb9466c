"""What is tried on a machine: for each option that the user leaves open, the values that may be faster."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Final, TypeAlias

import psutil

from gguf_imagegen.engines.process import HUGE_PAGES
from gguf_imagegen.pool.options import Options
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import LoadSpec

Factor: TypeAlias = tuple[Options, ...]
"""Values of one option, of which at most one is taken."""

UNETS: Final = ("sd1", "sd2", "sdxl")
HUGE_PAGES_GLIBC: Final = (2, 35)
HUGE_PAGES_MODE: Final = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def factors(
    family: str,
    settings: Settings,
    cores: int,
    *,
    huge_pages: bool,
    defaults: LoadSpec,
    kernels: str,
    int8: bool,
) -> list[Factor]:
    """In the order in which they are tried; `defaults` are settled, `kernels` ours that are in use.

    `int8` says whether the engine has kernels for it here.
    """
    every: dict[str, list[Options]] = {
        "threads": [Options(threads=count) for count in thread_counts(cores)],
        "kernels": [*[Options(kernels="int8")] * int8, *[Options(kernels="off")] * bool(kernels)],
        "flash_attention": [Options(flash_attention=not defaults.flash_attention)],
        "diffusion_conv_direct": [Options(diffusion_conv_direct=not defaults.diffusion_conv_direct)]
        * family.startswith(UNETS),
        "vae_conv_direct": [Options(vae_conv_direct=not defaults.vae_conv_direct)],
        "huge_pages": [Options(huge_pages=True)] * huge_pages,
    }
    return [
        tuple(values) for name, values in every.items() if values and name not in settings.model_fields_set
    ]


def thread_counts(cores: int, physical: int | None = None) -> list[int]:
    """Fewer than all: one a physical core, and half, the most first."""
    physical = physical or psutil.cpu_count(logical=False) or cores
    return sorted({count for count in (physical, cores // 2) if 0 < count < cores}, reverse=True)


def can_have_huge_pages(mode: Path = HUGE_PAGES_MODE) -> bool:
    """Whether the kernel gives them to who asks (`madvise`), and glibc's malloc can ask.

    With `always` malloc has them anyway, with `never` it gets none.
    """
    name, version = platform.libc_ver()
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    own = HUGE_PAGES.partition("=")[0] in os.environ.get("GLIBC_TUNABLES", "")
    try:
        return (
            name == "glibc"
            and numbers >= HUGE_PAGES_GLIBC
            and not own
            and "[madvise]" in mode.read_text(encoding="utf-8")
        )
    except OSError:
        return False
