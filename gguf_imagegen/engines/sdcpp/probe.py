"""What the engine's library says of itself, asked in a process of its own: a broken library may end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Final

from gguf_imagegen.machine.kernels import with_kernels
from gguf_imagegen.vocabulary.engine import Kernels

PROBE: Final = """
import dataclasses, json
from gguf_imagegen.engines.sdcpp.build import describe
from gguf_imagegen.engines.sdcpp.library import self_test
print(json.dumps({**dataclasses.asdict(describe()), "faults": self_test()}))
"""


def probe(
    program: str = PROBE, timeout: float = 60, *, kernels: Kernels = "auto"
) -> tuple[dict[str, Any] | None, str]:
    """What the library says of itself where these kernels are asked for, or None and why it says nothing."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True, text=True, timeout=timeout, env=with_kernels(os.environ, kernels),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"no answer within {timeout:g} s"
    if probe.returncode:
        return None, (probe.stderr.strip().splitlines() or [f"status {probe.returncode}"])[-1]
    try:
        return json.loads(probe.stdout.splitlines()[-1]), ""
    except (ValueError, IndexError):
        return None, "its answer cannot be read"
