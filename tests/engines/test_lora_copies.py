"""Copies of LoRAs with other names for their tensors: made once, told anew when the file changes, bounded."""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from gguf_imagegen.engines.sdcpp.lora_copies import LoraCopies
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.vocabulary.engine import Generate, Lora
from tests.engines.test_process import SPEC
from tests.weights import product, write_safetensors


def wanting(*paths: Path) -> Generate:
    loras = (Lora(path, 1.0, renamed={f"old.lora_{x}.weight": f"new.lora_{x}.weight" for x in "AB"})
             for path in paths)  # fmt: skip
    return replace(SPEC, loras=tuple(loras))


def written(path: Path, rank: int = 4) -> Path:
    return write_safetensors(path, {**product("old", 64, 64, rank), **product("other", 64, 64)})


def test_a_copy_has_the_data_under_other_names(tmp_path: Path) -> None:
    """And the file's own name; what needs no renaming stays where it is."""
    path = written(tmp_path / "ink.safetensors")
    plain = Lora(tmp_path / "plain.safetensors", 1.0)
    spec = wanting(path)
    with LoraCopies(tmp_path).renamed(replace(spec, loras=(*spec.loras, plain))) as known:
        copy, same = known.loras
        assert same == plain
        assert copy.path.name == path.name
        before, after = read_header(path), read_header(copy.path)
        assert list(after.tensors) == [name.replace("old", "new") for name in before.tensors]
        for old, new in zip(before.tensors.values(), after.tensors.values(), strict=True):
            assert (old.shape, old.type) == (new.shape, new.type)
            data = [file.read_bytes()[each.offset : each.offset + each.nbytes]
                    for file, each in ((path, old), (copy.path, new))]  # fmt: skip
            assert data[0] == data[1]


def test_a_copy_is_made_once_for_each_state_of_the_file(tmp_path: Path) -> None:
    path, copies = written(tmp_path / "ink.safetensors"), LoraCopies(tmp_path)

    def copy() -> tuple[Path, int]:
        with copies.renamed(wanting(path)) as known:
            return known.loras[0].path, known.loras[0].path.stat().st_mtime_ns

    first = copy()
    assert copy() == first
    written(path, rank=8)
    os.utime(path, ns=(1, 1))
    assert copy()[0] != first[0]


def test_the_oldest_copies_go_once_they_are_many(tmp_path: Path) -> None:
    """Never while a picture needs them, however large."""
    one, two = written(tmp_path / "one.safetensors"), written(tmp_path / "two.safetensors")
    copies = LoraCopies(tmp_path, most=int(1.5 * one.stat().st_size))
    with copies.renamed(wanting(one)):
        pass
    with copies.renamed(wanting(two, one)) as known:
        assert all(lora.path.is_file() for lora in known.loras)
    assert [lora.path.is_file() for lora in known.loras] == [False, True]
