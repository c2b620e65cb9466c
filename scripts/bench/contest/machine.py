"""What figures were measured on: the processor, the system, the commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil

from gguf_imagegen.machine.cores import usable_cores
from scripts.bench.compare_engines import ROOT

TELLING = ("avx2", "f16c", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8")
"""Of the processor's flags those that the kernels differ by."""


def machine() -> dict[str, Any]:
    cpu = cpu_words(Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
    return cpu | {
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "load": round(os.getloadavg()[0], 1),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git("status", "--porcelain") else ""),
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_words(cpuinfo: str) -> dict[str, Any]:
    """Name and telling flags, out of Linux' file; the name of the platform elsewhere."""
    name = re.search(r"^model name\s*: (.*)$", cpuinfo, re.M)
    flags = re.search(r"^flags\s*: (.*)$", cpuinfo, re.M)
    has = set(flags[1].split()) if flags else set()
    return {
        "cpu": name[1] if name else platform.processor(),
        "flags": [flag for flag in TELLING if flag in has],
    }


def _git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return ran.stdout.strip()
