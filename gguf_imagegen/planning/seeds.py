"""The seeds of a request: as asked, or drawn."""

from __future__ import annotations

import secrets
from typing import Final

from gguf_imagegen.planning.request import MAX_SEED, ImageRequest
from gguf_imagegen.vocabulary.engine import Variation
from gguf_imagegen.vocabulary.errors import InvalidRequest

DIGITS: Final = 6
"""Decimals of a strength, all of which a picture tells."""


def seeds_of(request: ImageRequest, n: int, notes: list[str]) -> tuple[int, Variation | None]:
    """The seed of the first of `n` images, and what is mixed into its noise."""
    seed = _seed("seed", request.seed, n)
    strength = round(request.variation_strength, DIGITS)
    if not strength:
        if request.variation_seed is not None:
            notes.append("variation_seed: has no effect without variation_strength")
        return seed, None
    other = _seed("variation_seed", request.variation_seed, n)
    return seed, Variation(other, strength)


def _seed(field: str, asked: int | None, n: int) -> int:
    if asked is None:
        return secrets.randbelow(MAX_SEED - n)
    if asked > MAX_SEED - n + 1:
        raise InvalidRequest(
            f"{field}: at most {MAX_SEED - n + 1} for {n} images, whose seeds count up", param=field
        )
    return asked
