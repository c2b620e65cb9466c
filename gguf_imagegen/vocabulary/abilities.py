"""What an engine can do, in the words of requests."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

TaskKind: TypeAlias = Literal["generate", "upscale", "convert", "edges"]


class Abilities(Struct, frozen=True):
    """Names that requests may use, and the first of each where neither request nor model says one.

    `families` are those of models, see `modelfiles.traits`; `upscalers` what a second pass can be made with
    besides a file. With `variations` it mixes the noise of two seeds.
    """

    samplers: tuple[str, ...]
    schedules: tuple[str, ...]
    families: tuple[str, ...]
    upscalers: tuple[str, ...] = ()
    tasks: tuple[TaskKind, ...] = ("generate",)
    variations: bool = False
