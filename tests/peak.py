"""Peak memory of an engine that makes one image, in bytes: `python -m tests.peak MODEL.gguf WIDTHxHEIGHT`.

The system tells the peak of ended children only as the greatest of all of them, so this is a program of its
own, with one such child. On Linux a child's peak begins at what its parent takes when it starts it: that of
a child that does nothing shows that the engine's is larger.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from gguf_imagegen.catalog.catalog import Catalog, entry_of_file
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec

if sys.platform != "win32":
    import resource

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one of what `ru_maxrss` counts."""


def work_of(model: Path, size: str) -> tuple[Catalog, Generate]:
    """A catalog of this model alone, and one step of one image."""
    entry = entry_of_file(model)
    wanted, warnings = parse_request({"prompt": "a cat", "size": size, "steps": 1})
    return Catalog([entry], model.parent), plan(wanted, entry, Settings(), "generation", warnings).spec


def measured_peak(model: Path, size: str) -> int:
    """As another process measures it."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.peak", str(model), size],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        check=True,
        timeout=120,
    )
    return int(run.stdout)


async def make_image(model: Path, size: str) -> None:
    catalog, spec = work_of(model, size)
    engine = EngineProcess()
    try:
        async for _ in engine.load(LoadSpec("test", catalog.paths(catalog.entries[0]), threads=1)):
            pass
        async for _ in engine.run(spec):
            pass
    finally:
        await engine.close()


def main() -> None:
    subprocess.run([sys.executable, "-c", ""], check=True)
    least = peak_of_children()
    asyncio.run(make_image(Path(sys.argv[1]), sys.argv[2]))
    peak = peak_of_children()
    assert least < peak, "the engine's peak is hidden behind this program's own"
    print(peak)


def peak_of_children() -> int:
    assert sys.platform != "win32"
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * UNIT


if __name__ == "__main__":
    main()
