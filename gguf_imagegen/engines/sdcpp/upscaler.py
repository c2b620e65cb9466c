"""ESRGAN upscaling by stable-diffusion.cpp (`esrgan.hpp`), in the worker process only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import stable_diffusion_cpp.stable_diffusion_cpp as low

from gguf_imagegen.engines.sdcpp.library import copy_image, free, set_image
from gguf_imagegen.vocabulary.engine import Upscale

TILE: Final = 128
"""Pixels a side of what is computed at once, as sd.cpp's own programs have it."""


class Upscaler:
    """The model used last stays loaded. One call at a time; its callbacks are those of `SdCpp`."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._context: Any = None

    def run(self, spec: Upscale) -> tuple[int, int, bytes] | None:
        """Width, height and RGB of the larger picture; None if that fails, for which see the log."""
        if not self._load(spec.path, spec.threads):
            return None
        picture, kept = low.sd_image_t(), list[object]()
        set_image(picture, spec.image, kept)
        larger = low.upscale(self._context, picture, 0)
        if not larger.data:
            return None
        try:
            return copy_image(larger)
        finally:
            free(larger.data)

    def _load(self, path: Path, threads: int) -> bool:
        if self._path == path:
            return True
        if self._context is not None:
            low.free_upscaler_ctx(self._context)
            self._path = self._context = None
        context = low.new_upscaler_ctx(str(path).encode(), False, False, threads, TILE)
        if not context:  # a NULL pointer object, not None
            return False
        self._path, self._context = path, context
        return True
