"""What a small model knows by name is told from what it does not."""

from __future__ import annotations

import pytest

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.vocabulary import Vocabulary, unknown_words

KNOWN = Vocabulary(
    ["cat", "ice cream", "cream pie", "dragon", "boat", "Straße", "t-shirt"], ["a", "red", "and", "on"]
)


@pytest.mark.parametrize(
    ("prompt", "names", "unknown"),
    [
        ("A red Cat", ["cat"], []),
        ("ice cream", ["ice cream"], []),
        ("a STRASSE", ["strasse"], []),
        ("a t-shirt", ["t-shirt"], []),
        ("a cat and a dragon", ["cat", "dragon"], []),
        ("a dragon boat", [], ["dragon boat"]),
        ("a fluffy white cat on a sofa", ["cat"], ["fluffy white", "sofa"]),
        ("ice and cream, 4k!", [], ["ice", "cream k"]),
        ("", [], []),
        ("…", [], []),
    ],
)
def test_names_are_told_from_other_words(prompt: str, names: list[str], unknown: list[str]) -> None:
    assert KNOWN.read(prompt) == (names, unknown)


@pytest.mark.parametrize(
    ("text", "like"), [("dragon boat", ["dragon", "boat"]), ("drogon", ["dragon"]), ("zeppelin", ["else"])]
)
def test_names_near_to_an_unknown_one(text: str, like: list[str]) -> None:
    assert KNOWN.like(text, ["else"]) == like


def test_a_model_without_a_list_knows_every_word() -> None:
    entry = Entry.model_validate({"id": "any", "family": "flux", "files": {}})
    assert unknown_words(entry, "a dragon boat") == []
