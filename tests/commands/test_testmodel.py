"""The tiny model: the same bytes everywhere, at once, and a model as good as any to the catalog."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest

from gguf_imagegen.catalog.catalog import entry_of_file
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import component_of, family_of


def digests(paths: dict[str, Path]) -> dict[str, str]:
    return {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in paths.items()}


def test_it_is_quick_and_deterministic(tmp_path: Path) -> None:
    """Two runs write the same bytes within 5 seconds; another seed writes another model."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    start = time.process_time()
    first = write_test_model(tmp_path / "a")
    assert time.process_time() - start < 5
    assert digests(first) == digests(write_test_model(tmp_path / "b"))
    assert digests(first) != digests(write_test_model(tmp_path / "b", seed=1))


def test_it_is_a_whole_ovis_image(model_dir: Path) -> None:
    """Its header says its family and its parts, and the pair of files is complete."""
    model, tae = read_header(model_dir / "tiny-random.gguf"), read_header(model_dir / "tiny-random-tae.gguf")
    assert (family_of(model), component_of(model)) == ("ovis-image", "model")
    assert (family_of(tae), component_of(tae)) == (None, "taesd")
    assert set(entry_of_file(model_dir / "tiny-random.gguf").files) == {"model", "taesd"}


def test_sizes_can_be_chosen(tmp_path: Path) -> None:
    """`hidden` and `single_blocks` size the transformer; a width that sd.cpp cannot take is refused."""
    model = write_test_model(tmp_path, hidden=256, single_blocks=2)["model"]
    tensors = read_header(model).tensors
    assert tensors["model.diffusion_model.img_in.weight"].shape == (256, 64)
    assert "model.diffusion_model.single_blocks.1.linear1.weight" in tensors
    with pytest.raises(ValueError, match="multiple of 128"):
        write_test_model(tmp_path, hidden=100)
