"""ESRGAN upscaling by stable-diffusion.cpp (`esrgan.hpp`), in the worker process only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stable_diffusion_cpp.stable_diffusion_cpp as low

from gguf_imagegen.engines.sdcpp.build import default_backend, devices, kernels
from gguf_imagegen.engines.sdcpp.images import copy_image, free, set_image
from gguf_imagegen.vocabulary.engine import Upscale, has_fast_kernels


class Upscaler:
    """The model used last stays loaded. One call at a time; its callbacks are those of `SdCpp`."""

    def __init__(self) -> None:
        self._loaded: tuple[Path, int] | None = None
        self._context: Any = None

    def run(self, spec: Upscale) -> tuple[int, int, bytes] | None:
        """Width, height and RGB of the larger picture; None if that fails, for which see the log."""
        if not self._load(spec):
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

    def _load(self, spec: Upscale) -> bool:
        if self._loaded == (spec.path, spec.tile):
            return True
        if self._context is not None:
            low.free_upscaler_ctx(self._context)
            self._loaded = self._context = None
        direct = has_fast_kernels(default_backend(tuple(devices())), kernels() or "")
        context = low.new_upscaler_ctx(str(spec.path).encode(), False, direct, spec.threads, spec.tile)
        if not context:  # a NULL pointer object, not None
            return False
        self._loaded, self._context = (spec.path, spec.tile), context
        return True
