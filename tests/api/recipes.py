"""Running other servers' recipes as their pages have them; only host, port and model name are changed."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.conftest import DEADLINE

CATALOG = """\
version: 1
models:
  tiny-random:
    family: ovis-image
    files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}
    defaults: {size: 128x128, steps: 2, cfg_scale: 1.0}
    limits: {max_side: 1024, max_pixels: 1048576, max_steps: 100}
"""
"""The test model with so few default steps that recipes without any are fast, and sizes as recipes ask."""


def write_catalog(folder: Path) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(CATALOG)
    return path


def ours(recipe: str, url: str) -> str:
    """The recipe with the address of our server, and our model in the place of theirs."""
    recipe = re.sub(r"http://(?:localhost:\d+|myserver|<XINFERENCE_HOST>:<XINFERENCE_PORT>)", url, recipe)
    model = r"(?:OpenVINO|Qwen|black-forest-labs)/[\w.-]+|Qwen-Image-Edit-\d+|<MODEL_UID>|(?<=model=)xxx"
    return re.sub(model, "tiny-random", recipe)


async def shell(script: str, cwd: Path) -> str:
    """Run a script as a user would in bash; what it printed, and what it complained of."""
    return await _run("bash", "-o", "pipefail", "-c", script, cwd=cwd)


async def python(code: str, cwd: Path) -> str:
    """Run a client's code; what it printed."""
    return await _run(sys.executable, "-c", code, cwd=cwd)


async def _run(*command: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), DEADLINE)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, out.decode()
    return out.decode()
