"""What LoRAs say of themselves, as three trainers write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gguf_imagegen.modelfiles.lora_card import LoraCard, lora_card
from tests.weights import product, write_safetensors

TAGS = json.dumps({"10_ohwx": {"ohwx man": 20, "beard": 3}, "1_more": {"beard": 1, "hat": 7}})


def lora(path: Path, metadata: object) -> Path:
    """A safetensors file that fits the tiny model, with this metadata."""
    return write_safetensors(path, product("model.diffusion_model.img_in", 128, 64), metadata=metadata)


@pytest.mark.parametrize(
    ("metadata", "card"),
    [
        ({}, LoraCard()),
        ({"format": "pt"}, LoraCard()),
        ({"ss_base_model_version": "sdxl_base_v1-0", "ss_tag_frequency": TAGS},
         LoraCard("sdxl_base_v1-0", ("ohwx man", "hat", "beard"))),
        ({"modelspec.architecture": "flux-1-dev/lora", "modelspec.trigger_phrase": "TOK,\n in ink ",
          "ss_tag_frequency": TAGS}, LoraCard("flux-1-dev", ("TOK", "in ink"))),
        ({"ss_tag_frequency": "no JSON", "ss_sd_model_name": "a\x00b" + "x" * 500},
         LoraCard("a b" + "x" * 197)),
        ({"ss_tag_frequency": '{"a": 5, "b": {"c": "d"}}'}, LoraCard("", ("c",))),
        ({"ss_tag_frequency": 5}, LoraCard()),
    ],
)  # fmt: skip
def test_what_a_lora_says(tmp_path: Path, metadata: object, card: LoraCard) -> None:
    """The maker's own words before those counted in the captions; odd ones surprise nobody."""
    assert lora_card(lora(tmp_path / "l.safetensors", metadata)) == card


def test_a_file_that_cannot_be_read_says_nothing(tmp_path: Path) -> None:
    """Neither one that is not there, nor one whose metadata is no object; a new file is read anew."""
    path = tmp_path / "l.safetensors"
    assert lora_card(path) == LoraCard()
    assert lora_card(lora(path, ["a"])) == LoraCard()
    assert lora_card(lora(path, {"ss_sd_model_name": "other"})) == LoraCard("other")
