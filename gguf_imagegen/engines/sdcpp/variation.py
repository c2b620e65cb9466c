"""The noise of two seeds mixed, by the function that `scripts/engine/hooks` adds to the library.

The interpolation is AUTOMATIC1111's (modules/rng.py): spherical, along the columns of each channel.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gguf_imagegen.engines.sdcpp.abilities import VARIATIONS
from gguf_imagegen.vocabulary.engine import Generate


class CannotMix(Exception):
    """The library was built without the patch."""

    def __init__(self) -> None:
        super().__init__(
            "this build of the engine cannot mix the noise of two seeds; scripts/install builds one"
        )


def first_seed(spec: Generate, index: int) -> int:
    """The seed that the library gets for images from `index` on: it counts up those of the noise mixed in."""
    variation = spec.variation_of(index)
    return variation.seed if variation and variation.strength >= 1 else spec.seed_of(index)


@contextmanager
def mixing(library: Any, spec: Generate, index: int) -> Iterator[None]:
    """Images from `index` on that this thread generates meanwhile have mixed noise. Raises CannotMix."""
    variation = spec.variation_of(index)
    if variation is None or variation.strength >= 1:
        yield
        return
    mix = getattr(library, VARIATIONS, None)
    if mix is None:
        raise CannotMix
    mix.argtypes, mix.restype = [ctypes.c_int64, ctypes.c_float], None
    mix(variation.seed, variation.strength)
    try:
        yield
    finally:
        mix(0, 0.0)
