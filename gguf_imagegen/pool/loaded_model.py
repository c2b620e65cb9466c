"""A model in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.verdict import needs_tiling
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.pool.options import Options
from gguf_imagegen.vocabulary.engine import LiveEngine, LoadSpec, Role


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, and the engine that has it; `used` is when it was last asked for (monotonic clock).

    `backend` and `kernels` are what it computes on, as `Loaded` tells. `tuned` is what was loaded otherwise
    than by default, because a tuning says so; None without a tuning.
    """

    entry: Entry
    engine: LiveEngine
    headers: Mapping[Role, Header]
    backend: str = ""
    kernels: str = ""
    vae_conv_direct: bool = False
    tuned: Options | None = None
    keep_alive: float = -1
    used: float = 0.0

    def settle(self, spec: LoadSpec, backend: str, kernels: str) -> None:
        """It was loaded as `spec` says, onto this."""
        self.backend, self.kernels = backend, kernels
        self.vae_conv_direct = bool(spec.settled(backend, kernels).vae_conv_direct)

    def needs_tiling(self, width: int, height: int, free: Available) -> bool:
        """Whether it can decode a picture of this size in tiles only."""
        files = (self.entry, self.headers)
        return needs_tiling(*files, width, height, free, self.backend, self.vae_conv_direct)

    @property
    def words(self) -> str:
        """`CPU with AVX2 f32 kernels, tuned: threads 2`."""
        kernels = f" with {self.kernels} kernels" if self.kernels else ""
        return self.backend + kernels + (f", tuned: {self.tuned.words}" if self.tuned is not None else "")

    @property
    def expires(self) -> float:
        return self.used + self.keep_alive if self.keep_alive >= 0 else math.inf
