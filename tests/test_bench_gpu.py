"""scripts/bench/gpu.py as far as it needs no GPU: what is counted and told, and what fails."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from gguf_imagegen.settings import Settings
from scripts.bench import gpu
from scripts.bench.figures import Run

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench" / "gpu"


@pytest.mark.parametrize(
    ("began", "ended", "limit", "part"), [(0, 2, 10, 1.0), (9, 11, 10, 0.5), (0, 40, 10, 0.25)]
)
def test_pictures_under_way_count_in_part(began: float, ended: float, limit: float, part: float) -> None:
    assert gpu.share(began, ended, limit) == part


async def lines(*items: dict[str, Any]) -> AsyncIterator[bytes]:
    yield b": queued\n"
    for item in items:
        yield b"data: " + json.dumps({"data": [item]}).encode() + b"\n"
        yield b"\n"
    yield b"data: [DONE]\n"


async def test_a_step_is_waited_for() -> None:
    """In llama-box's frames; a stream without it ended too early to be cancelled."""
    await gpu.until_step(lines({"progressed_steps": 1}, {"progressed_steps": 3}), 3)
    with pytest.raises(RuntimeError, match="ended before"):
        await gpu.until_step(lines({"progressed_steps": 1}), 3)


async def test_what_fails_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A check that breaks, one that hangs and those without time are named; the others have their figures."""

    async def good(card: gpu.Card, run: Run) -> None:
        run.tell("something", "s", [1.0], most=2)

    async def bad(card: gpu.Card, run: Run) -> None:
        raise OSError("no card")

    async def slow(card: gpu.Card, run: Run) -> None:
        await asyncio.Event().wait()

    checks: dict[str, gpu.Check] = {"good": good, "bad": bad, "slow": slow, "late": good}
    runs: list[Run] = []
    card = gpu.Card("cuda:0", tmp_path / "never-written.safetensors")
    with Progress(disable=True) as bar:

        def start(name: str) -> Run:
            runs.append(Run(name, Settings(models_dir=tmp_path), 1, True, "64x64", bar))
            return runs[-1]

        missing = await gpu.run_all(checks, card, time.monotonic() + 0.2, start)
    assert missing == {"bad": "OSError: no card", "slow": "it took too long", "late": "no time was left"}
    assert [figure.verdict for run in runs for figure in run.figures] == ["pass"]


@pytest.mark.posix
def test_the_script_needs_cudas_compiler(tmp_path: Path) -> None:
    """And says so before it does anything."""
    (tmp_path / "dirname").symlink_to("/usr/bin/dirname")
    ran = subprocess.run(
        ["/bin/bash", str(SCRIPT)],
        env={"PATH": str(tmp_path), "CUDA_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "nvcc, CUDA's compiler, is not here" in ran.stderr
