"""What a tuning holds for: the CPU, its cores, and the very build of the engine with its devices."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from gguf_imagegen.engines.process import worker_environment
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.vocabulary.engine import Kernels

PROBE: Final = """
import dataclasses, hashlib, json, pathlib
from importlib import metadata
from gguf_imagegen.engines.sdcpp import build
found = dataclasses.asdict(build.describe())
library = hashlib.sha256(pathlib.Path(build.low._lib._name).read_bytes()).hexdigest()
print(json.dumps({
    "engine": metadata.version("stable-diffusion-cpp-python"), "library": library,
    "features": found["features"], "backend": found["backend"], "kernels": found["kernels"] or "",
    "devices": [device["description"] for device in found["devices"]],
}))
"""
"""Run in a process of its own: this one must not load native code. Takes about 0.2 s."""
PROBE_TIMEOUT: Final = 60.0


class Machine(BaseModel):
    """`cores` are the usable ones, `library` the SHA-256 of the engine's file; the rest tells ggml.

    `kernels` are those of ours that are in use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    cores: int
    engine: str
    library: str
    features: tuple[str, ...]
    backend: str
    kernels: str = ""
    devices: tuple[str, ...]

    def differences(self, here: Machine) -> list[str]:
        """Names of the fields in which another machine differs."""
        return [name for name in Machine.model_fields if getattr(self, name) != getattr(here, name)]


def this_machine(kernels: Kernels = "auto") -> Machine | None:
    """None if the engine's library does not load. Blocks for as long as the probe takes."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True, text=True, timeout=PROBE_TIMEOUT,
            env=worker_environment(os.environ, kernels=kernels),
        )  # fmt: skip
        found = json.loads(probe.stdout.splitlines()[-1])
        return Machine(cpu=cpu_name(), cores=usable_cores(), **found)
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError, TypeError, ValidationError):
        return None


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model as Linux names it, elsewhere what Python knows of it."""
    with suppress(OSError):
        if match := re.search(
            r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M
        ):
            return match[1].strip()
    return platform.processor() or platform.machine()
