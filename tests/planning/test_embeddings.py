"""Which textual inversions a prompt names, and which of them a model can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_imagegen.modelfiles.embeddings import as_f32, naming
from gguf_imagegen.modelfiles.inspect import component_of, inspect_file
from gguf_imagegen.planning.embeddings import listed_embeddings
from gguf_imagegen.vocabulary.errors import InvalidRequest
from tests.planning.test_plan import entry, planned
from tests.weights import product, write_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Embeddings of each kind, one of them in a folder below."""
    ones = np.ones((2, 768), np.float32)
    write_safetensors(tmp_path / "EasyNeg.safetensors", {"emb_params": ones})
    write_safetensors(tmp_path / "easyneg-v2.sft", {"<easy>": ones[0].astype(np.float16)})
    write_safetensors(tmp_path / "two.safetensors", {"emb_params": np.ones((3, 1024), np.float32)})
    write_safetensors(tmp_path / "xl.safetensors", {"clip_l": ones, "clip_g": np.ones((2, 1280), np.float32)})
    write_safetensors(tmp_path / "wide.safetensors", {"emb_params": np.ones((76, 768), np.float16)})
    write_safetensors(tmp_path / "lora.safetensors", product("x", 768, 768))
    (tmp_path / "old.pt").write_bytes(b"PK")
    (tmp_path / "below").mkdir()
    write_safetensors(tmp_path / "below" / "my style (1).safetensors", {"emb_params": ones})
    return tmp_path


def used(folder: Path, prompt: str, family: str = "sd1", **fields: Any) -> tuple[list[str], list[str]]:
    """Names of the embeddings, and the warnings."""
    result = planned(entry(family), settings={"embedding_dir": folder}, prompt=prompt, **fields)
    return [each.word for each in result.spec.embeddings], list(result.warnings)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a cat, easyneg", ["EasyNeg"]),
        ("(EASYNEG:1.2)", ["EasyNeg"]),
        ("embedding:EasyNeg.safetensors, blue", ["EasyNeg"]),
        ("(embedding:easyneg-v2:1.2) and EasyNeg", ["easyneg-v2", "EasyNeg"]),
        ("easyneg-v2", ["easyneg-v2"]),
        ("in embedding:my style (1)", ["my style (1)"]),
        ("uneasyneg, easyneg2, word-easyneg", []),
        ("a word embedding: a map", []),
    ],
)
def test_names_in_prompts(folder: Path, prompt: str, words: list[str]) -> None:
    """As AUTOMATIC1111 and as ComfyUI write them; never a part of another word."""
    assert used(folder, prompt) == (words, [])


def test_the_negative_prompt_counts_too(folder: Path) -> None:
    """It is where most embeddings are named."""
    assert used(folder, "a cat", negative_prompt="easyneg, ugly")[0] == ["EasyNeg"]


@pytest.mark.parametrize(
    ("prompt", "family", "words"),
    [
        ("two", "sd1", "'two' has no effect: it is for sd2 models, not sd1"),
        ("easyneg", "sd2-inpaint", "it is for sd1 models, not sd2"),
        ("xl", "sdxl", "mixes up the vectors of the two text encoders"),
        ("easyneg", "flux", "flux models take no textual inversions"),
        ("wide", "sd1", "has 76 vectors; at most 75"),
        ("old", "sd1", "convert it to safetensors"),
        ("embedding:lora", "sd1", "is no textual inversion"),
    ],
)
def test_what_does_not_fit_has_no_effect(folder: Path, prompt: str, family: str, words: str) -> None:
    """Told by the header, with a warning."""
    names, (warning,) = used(folder, prompt, family)
    assert names == []
    assert words in warning


def test_variants_have_their_familys_text_encoder(folder: Path) -> None:
    """An inpainting model of SD2 takes what SD2 takes."""
    assert used(folder, "two", "sd2-inpaint") == (["two"], [])


def test_an_unknown_name_lists_those_that_there_are(folder: Path, tmp_path: Path) -> None:
    """Whoever writes `embedding:` means a file."""
    with pytest.raises(
        InvalidRequest, match=r"'easyneq'; did you mean 'EasyNeg'\? known: EasyNeg, easyneg-v2"
    ):
        used(folder, "embedding:easyneq")
    with pytest.raises(InvalidRequest, match="--embedding-dir"):
        used(tmp_path / "absent", "embedding:easyneg")


def test_a_prompt_cannot_grow_without_end(folder: Path) -> None:
    """Each name counts as often as it stands there."""
    assert used(folder, "easyneg " * 600)[0] == ["EasyNeg"]
    with pytest.raises(InvalidRequest, match="make 1202 tokens, at most 1200"):
        used(folder, "easyneg " * 601)


def test_the_listing(folder: Path) -> None:
    """Everything that looks like one, with what it is or why it cannot be used."""
    found = {each.name: (each.family, each.vectors, bool(each.fault)) for each in listed_embeddings(folder)}
    assert found == {
        "EasyNeg": ("sd1", 2, False),
        "easyneg-v2": ("sd1", 1, False),
        "my style (1)": ("sd1", 2, False),
        "two": ("sd2", 3, False),
        "xl": ("sdxl", 2, False),
        "wide": ("sd1", 76, True),
        "lora": ("", 0, True),
        "old": ("", 0, True),
    }
    assert component_of(inspect_file(folder / "EasyNeg.safetensors")) == "embedding"
    assert listed_embeddings(None) == []


@pytest.mark.parametrize("kind", ["F16", "BF16", "F64", "F32"])
def test_vectors_become_f32(tmp_path: Path, kind: str) -> None:
    """sd.cpp copies bytes of any type into a table of F32."""
    values = np.array([[1.0, -2.5] * 384], np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    numbers = halves if kind == "BF16" else values.astype({"F16": "f2", "F64": "f8", "F32": "f4"}[kind])
    path = write_safetensors(tmp_path / "e.safetensors", {"<e>": numbers[0]}, {"<e>": kind})
    made = tmp_path / "made.safetensors"
    made.write_bytes(as_f32(path))
    (tensor,) = inspect_file(made).tensors.values()
    assert (tensor.name, tensor.shape, tensor.type) == ("emb_params", (1, 768), "F32")
    assert made.read_bytes()[tensor.offset :] == values.tobytes()


def test_no_names_match_nothing() -> None:
    """A folder without files changes no prompt."""
    assert naming([]).sub("x", "any word, embedding:y") == "any word, embedding:y"
