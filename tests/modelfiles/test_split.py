"""Split GGUF files, written by the gguf library: joined they hold what the whole model held."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.split import join, split_of
from gguf_imagegen.vocabulary.errors import InvalidModelFile
from tests.commands.test_cli import cli, fails_in_one_line

WEIGHTS = {
    f"blocks.{number}.weight": np.random.default_rng(number).normal(size=(number + 1, 32)).astype(kind)
    for number, kind in enumerate((np.float32, np.float16, np.float32, np.float16, np.float32))
}


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of three parts."""
    writer = gguf.GGUFWriter(tmp_path / "whole.gguf", "flux", split_max_tensors=2)
    writer.add_string("general.name", "cut")
    for name, weights in WEIGHTS.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file(path=tmp_path / "whole.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "whole-00001-of-00003.gguf"


def test_joined_parts_are_the_whole(first: Path, tmp_path: Path) -> None:
    """Through the command: tensors to the byte, metadata, and no part of anything any more."""
    run = cli("convert", first, tmp_path / "out.gguf")
    assert run.returncode == 0, run.stderr
    assert "out.gguf: 5 tensors of 3 parts" in run.stdout
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert {tensor.name: tensor.data.tobytes() for tensor in reader.tensors} == {
        name: weights.tobytes() for name, weights in WEIGHTS.items()
    }
    assert reader.fields["general.name"].contents() == "cut"
    assert reader.fields["split.count"].contents() == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "out.gguf", *(f"whole-0000{number}-of-00003.gguf" for number in (1, 2, 3)),
    }  # fmt: skip


def test_progress_is_told(first: Path, tmp_path: Path) -> None:
    split, told = split_of(first), list[tuple[int, int]]()
    assert split is not None
    join(split, tmp_path / "out.gguf", lambda done, total: told.append((done, total)))
    assert len(told) == len(WEIGHTS)
    assert told == sorted(told)
    assert read_header(tmp_path / "out.gguf").tensors.keys() == WEIGHTS.keys()


def test_what_cannot_be_joined(first: Path, tmp_path: Path) -> None:
    """A part that is not there, not the first, or there twice is named."""
    second = tmp_path / "whole-00002-of-00003.gguf"
    with pytest.raises(InvalidModelFile, match=r"give the first part, whole-00001-of-00003.gguf"):
        split_of(second)
    assert split_of(tmp_path / "one.gguf") is None
    content = second.read_bytes()
    second.unlink()
    with pytest.raises(InvalidModelFile, match=r"a part is missing beside it: whole-00002-of-00003.gguf"):
        split_of(first)
    second.write_bytes(first.read_bytes())
    with pytest.raises(InvalidModelFile, match=r"another part has the tensor 'blocks.0.weight', too"):
        split_of(first)
    second.write_bytes(content)
    (tmp_path / "one.gguf").write_bytes(content)
    fails_in_one_line(cli("convert", tmp_path / "one.gguf", tmp_path / "x.gguf"), "say with --type")
