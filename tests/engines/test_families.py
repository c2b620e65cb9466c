"""Families of sd.cpp on the real engine, in the smallest sizes that its code allows, with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import family_of, missing_parts
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec
from tests.engines.test_process import GRADIENT, SPEC, images, loaded
from tests.small_families import write_family

QUICK = replace(SPEC, steps=1)


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("flux-controls", {"control_image": GRADIENT}),
        ("anima", {"seed": SPEC.seed + 1}),
        ("ernie-image", {"seed": SPEC.seed + 1}),
    ],
)
async def test_a_family_draws(tmp_path: Path, family: str, change: dict[str, object]) -> None:
    """It is known by its header, and what it is asked for decides what it draws.

    Flex.2 aborts the installed engine. Chroma-Radiance is not here: one step of its fixed widths takes 20 s.
    """
    files = write_family(family, tmp_path)
    headers = {role: read_header(path) for role, path in files.items()}
    assert family_of(headers["diffusion"]) == family
    left_out = ["t5xxl"] if "clip_l" in files else []
    assert [role for _, role in missing_parts(family, headers)] == left_out
    changed: Generate = replace(QUICK, **change)
    async with loaded(LoadSpec("test", files, threads=2)) as engine:
        pictures = [(await images(engine, spec))[0].artifact for spec in (QUICK, changed)]
    assert all(isinstance(picture, RawImage) and len(picture.data) == 64 * 64 * 3 for picture in pictures)
    assert pictures[0] != pictures[1]
