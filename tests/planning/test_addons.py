"""Files that requests name, in folders of folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from gguf_imagegen.planning.addons import listed_name, named_file, names_in
from gguf_imagegen.vocabulary.errors import InvalidRequest
from tests.weights import write_lora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    for place in ("top", "people/anna", "x/twice", "y/twice", ".cache/hidden", "a/b/c/d/e/deep"):
        path = folder / f"{place}.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lora(path)
    (folder / "x" / "round").symlink_to(folder)
    (tmp_path / "secret.gguf").write_bytes((folder / "top.gguf").read_bytes())
    return folder


def test_names_have_their_folders(folder: Path) -> None:
    """Neither hidden folders, nor links to folders, nor ever deeper ones are looked into."""
    assert names_in(folder, "lora") == ["people/anna", "top", "x/twice", "y/twice"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("top", "top"), ("top.gguf", "top"), ("people/anna", "people/anna"),
        ("people/anna.gguf", "people/anna"),
        ("people\\anna", "people/anna"), ("anna", "people/anna"), ("anna.gguf", "people/anna"),
        ("y/twice", "y/twice"),
    ],
)  # fmt: skip
def test_every_name_of_the_list_can_be_used(folder: Path, name: str, place: str) -> None:
    """With the folder in either spelling, or without it where one file alone has the name."""
    assert listed_name(named_file(name, folder, "lora"), folder) == place


def test_a_name_in_several_folders_wants_one(folder: Path) -> None:
    """Nobody gets another file than the one meant."""
    with pytest.raises(InvalidRequest, match="in several folders; say which: x/twice, y/twice"):
        named_file("twice", folder, "lora")


@pytest.mark.parametrize(
    "name", ["../secret", "people/../top", "/etc/passwd", "people", "hidden", "deep", ""]
)
def test_no_other_file_can_be_named(folder: Path, name: str) -> None:
    """Names are compared with the list, never joined to a path."""
    with pytest.raises(InvalidRequest, match="no LoRA"):
        named_file(name, folder, "lora")
