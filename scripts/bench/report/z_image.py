"""What a picture of Z-Image-Turbo would take, reckoned from one block, one layer and a decoding.

No measurement: Z-Image has 30 blocks over image and prompt, 2 more over the image alone and 2 over the prompt
alone, which together are nearly 32 of the first kind. Turbo draws in 9 steps without guidance: one pass a
step. Its text encoder, Qwen3 4B, is reckoned by its products from T5's layer; its decoder (Flux's, 512x512)
is Stable Diffusion's but for 16 latents. Patches, final layer and sampler are left out: below a per cent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from scripts.bench.blocks import BLOCKS
from scripts.bench.report.rows import Row

STEPS: Final = 9
BLOCKS_A_STEP: Final = 32
QWEN_OPERATIONS: Final = 2 * 64 * 3.6e9
"""Of a prompt of 64 tokens: two for each weight that is no embedding."""
CORES: Final = 8
EFFICIENCY: Final = 0.75
"""Of eight cores to eight times one: an assumption, as memory and clock are shared."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one picture at 512x512 on one core; `decode` is None where it was not measured."""

    engine: str
    kind: str
    block: float
    steps: float
    prompt: float | None
    decode: float | None

    @property
    def whole(self) -> float:
        return self.steps + (self.prompt or 0) + (self.decode or 0)

    @property
    def desktop(self) -> float:
        """On eight cores like the one that was measured."""
        return self.whole / (CORES * EFFICIENCY)


def estimates(rows: list[Row]) -> list[Estimate]:
    """For each engine and type whose block was measured with one thread."""
    found = {(row.engine, row.case.subject, row.case.part, row.case.kind, row.case.size): row.median
             for row in rows if row.case.threads == 1}  # fmt: skip
    made = []
    for (engine, subject, _, kind, _), block in found.items():
        if subject != "z-image":
            continue
        layer = found.get((engine, "t5", "block", kind, 0))
        decode = found.get((engine, "sd15", "decode", "F16", 512))
        prompt = None if layer is None else layer * QWEN_OPERATIONS / BLOCKS["t5"].operations
        made.append(Estimate(engine, kind, block, STEPS * BLOCKS_A_STEP * block, prompt, decode))
    return made
