"""Draw the golden pictures with the engine that is installed: `python -m scripts.wheels.golden`.

To be done when the embedded model has changed; look at the two pictures before they are committed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from PIL import Image

from gguf_imagegen.catalog.entry import PACKAGED
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.engines.sdcpp.golden import GGMLS, MODEL, OURS, PICTURE
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.vocabulary.engine import Kernels, LoadSpec
from gguf_imagegen.vocabulary.events import Made


async def draw(kernels: Kernels, golden: Path) -> None:
    engine = EngineProcess()
    model, tiny = (PACKAGED / name for name in MODEL)
    spec = LoadSpec("golden", {"model": model, "taesd": tiny}, usable_cores(), kernels=kernels)
    try:
        async for _ in engine.load(spec):
            pass
        async for event in engine.run(PICTURE):
            if isinstance(event, Made):
                image = event.artifact
                picture = Image.frombytes("RGB", (image.width, image.height), image.data)
                picture.save(golden, optimize=True)
    finally:
        await engine.close()


def main() -> None:
    asyncio.run(draw("f32", OURS))
    asyncio.run(draw("off", GGMLS))
    print(OURS, GGMLS, sep="\n")


if __name__ == "__main__":
    main()
