"""The synthetic models of the comparisons: names, shapes, and values that say something."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader

from scripts.bench.plausible import weight, write_plausible
from scripts.bench.synthetic import UNET, sd1, sdxs


def test_models_have_their_numbers_of_weights() -> None:
    """Stable Diffusion 1.5's 1.07 billion, and SDXS's UNet of 0.32 billion; no name twice."""
    for tensors, prefix, millions in ((sd1(), "", 1066), (sdxs(), UNET, 319)):
        shapes = list(tensors)
        assert len(dict(shapes)) == len(shapes)
        assert sum(
            math.prod(shape) for name, shape in shapes if name.startswith(prefix)
        ) / 1e6 == pytest.approx(millions, rel=0.02)


def test_values_keep_their_size() -> None:
    """What a layer makes of values of size one has size one; a branch half of it."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((640, 64), np.float32)
    plain = weight(
        rng, "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_k.weight", (640, 640)
    )
    branch = weight(rng, "model.diffusion_model.input_blocks.4.1.proj_out.weight", (640, 640, 1, 1))
    assert (plain @ x).std() == pytest.approx(1, rel=0.1)
    assert (branch[:, :, 0, 0] @ x).std() == pytest.approx(0.5, rel=0.1)


def test_latents_go_through_to_the_last_convolution() -> None:
    """Plus and minus through SiLU: four latents come out as 0.9 of themselves, if nothing is added."""
    rng = np.random.default_rng(1)
    first = weight(rng, f"{UNET}input_blocks.0.0.weight", (320, 4, 3, 3))[:8, :, 1, 1]
    skip = weight(rng, f"{UNET}output_blocks.11.0.skip_connection.weight", (320, 640, 1, 1))[:8, :, 0, 0]
    last = weight(rng, f"{UNET}out.2.weight", (4, 320, 3, 3))[:, :8, 1, 1]
    latents = rng.standard_normal((4, 100), np.float32)
    carried = skip[:, 320:328] @ (first @ latents)
    np.testing.assert_allclose(last @ (carried / (1 + np.exp(-carried))), 0.9 * latents, rtol=1e-4, atol=1e-5)
    assert not skip[:, :320].any()


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_file_holds_matrices_of_its_type(kind: str, tmp_path: Path) -> None:
    """Convolutions in F16, vectors in F32; twice the same bytes."""
    shapes = [
        ("a.to_q.weight", (64, 64)),
        ("a.bias", (64,)),
        ("b.weight", (32, 8, 3, 3)),
        ("embedding.weight", (9, 32)),
    ]
    files = [write_plausible(tmp_path / name, iter(shapes), kind) for name in ("one", "two")]
    types = [GGMLQuantizationType(each.tensor_type).name for each in GGUFReader(files[0]).tensors]
    assert types == [kind, "F32", "F16", "F16"]
    assert files[0].read_bytes() == files[1].read_bytes()
