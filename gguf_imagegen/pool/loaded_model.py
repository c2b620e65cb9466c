"""A model in memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.modelfiles.header import Header
from gguf_imagegen.pool.options import Options
from gguf_imagegen.vocabulary.engine import Engine, Role


@dataclass(eq=False)
class LoadedModel:
    """A model in memory, and the engine that has it; `used` is when it was last asked for (monotonic clock).

    `tuned` is what was loaded otherwise than by default, because a tuning says so; None without a tuning.
    """

    entry: Entry
    engine: Engine
    headers: Mapping[Role, Header]
    backend: str = ""
    tuned: Options | None = None
    keep_alive: float = -1
    used: float = 0.0

    @property
    def expires(self) -> float:
        return self.used + self.keep_alive if self.keep_alive >= 0 else math.inf
