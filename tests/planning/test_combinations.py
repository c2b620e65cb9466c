"""Prompts that stand for many, and the pictures that a set comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.planning.combinations import Combinations, combinations
from gguf_imagegen.planning.expansion import COUNTLESS, Wildcards, expanded
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest, UnknownSampler


def texts(prompt: str, folder: Path | None = None) -> list[str]:
    found = expanded(prompt, Wildcards(folder).lines)
    return [found.text(number) for number in range(found.count)]


def combined(*, wildcards_dir: Path | None = None, max_set: int = 200, **data: Any) -> Combinations:
    return combinations(data, ABILITIES, Settings(wildcards_dir=wildcards_dir, max_set=max_set))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Wildcard files, one in a folder, one that leads round, and a secret beside them."""
    inside = tmp_path / "wildcards"
    (inside / "animals").mkdir(parents=True)
    (inside / "colour.txt").write_text("# of cats\nred\n\n {light|dark} blue \n")
    (inside / "animals" / "small.txt").write_text("mouse\n")
    (inside / "round.txt").write_text("a __round__\n")
    (inside / "empty.txt").write_text("#\n")
    (tmp_path / "secret.txt").write_text("secret\n")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    return inside


@pytest.mark.parametrize(
    ("prompt", "every"),
    [
        ("a cat", ["a cat"]),
        ("", [""]),
        ("a {red|blue} cat", ["a red cat", "a blue cat"]),
        ("{a|b}{1|2}", ["a1", "a2", "b1", "b2"]),
        ("{a|{b|c} d|}", ["a", "b d", "c d", ""]),
        ("a | b, (c:1.2), snake_case __ __", ["a | b, (c:1.2), snake_case __ __"]),
        (r"\{a\|b\} \__c__ \\", ["{a|b} __c__ \\"]),
    ],
)
def test_choices(prompt: str, every: list[str]) -> None:
    """Each choice by itself, the last one changing fastest; escaped braces are braces."""
    assert texts(prompt) == every


def test_wildcards(folder: Path) -> None:
    """Each line but comments and blanks, and lines may hold choices; files in folders by their place."""
    assert texts("__colour__ __animals/small__", folder) == [
        "red mouse",
        "light blue mouse",
        "dark blue mouse",
    ]


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("{a|b", "no '}'"),
        ("a}", "no '{'"),
        ("{" * 20 + "}" * 20, "nest"),
        ("__round__", "nest"),
        ("__empty__", "is empty"),
        ("__nothing__", "known: "),
        ("__../secret__", "no wildcard"),
        ("__link__", "no wildcard"),
        ("__/etc/passwd__", "no wildcard"),
    ],
)
def test_what_cannot_be_expanded(prompt: str, words: str, folder: Path) -> None:
    """It is said why, and nothing outside the folder is read."""
    with pytest.raises(InvalidRequest, match=words):
        texts(prompt, folder)


def test_wildcards_without_a_folder() -> None:
    """The flag is named."""
    with pytest.raises(InvalidRequest, match="--wildcards-dir"):
        texts("__colour__")


def test_a_great_many_cost_nothing() -> None:
    """They are counted, not written out."""
    found = expanded("{a|b|c|d|e|f|g|h}" * 40, Wildcards(None).lines)
    assert found.count == COUNTLESS
    assert len(found.text(12345)) == 40


def test_every_combination() -> None:
    """The last field changes fastest; values are checked as in a request, with its names for them."""
    found = combined(
        prompts=["a", "b {c|d}"],
        matrix={"sampler": ["Euler a", "dpm++2m"], "seed": [1, "2"], "model": ["m"]},
        sample_steps=3,
    )
    requests = list(found.requests)
    assert len(requests) == 2 * 2 * 2
    assert [(r.model, r.prompt, r.sampler, r.seed) for r in requests[:3]] == [
        ("m", "a", "euler_a", 1),
        ("m", "a", "euler_a", 2),
        ("m", "a", "dpm++2m", 1),
    ]
    assert requests[-1].prompt == "b {c|d}"
    assert {request.steps for request in requests} == {3}


def test_one_seed_for_all() -> None:
    """Without seeds one is drawn for the set, so that its pictures differ in what varies alone."""
    found = combined(prompts=["a", "b"], matrix={"steps": [1, 2]})
    assert len({request.seed for request in found.requests}) == 1
    drawn = combined(prompts=["a", "b"], matrix={"seed": [-1, -1]})
    assert len({request.seed for request in drawn.requests}) == 2


def test_expansion_is_asked_for() -> None:
    """Ordinary prompts stay as they are."""
    assert [request.prompt for request in combined(prompts=["{a|b}"]).requests] == ["{a|b}"]
    found = combined(prompts=["{a|b}", "c"], expand=True)
    assert [request.prompt for request in found.requests] == ["a", "b", "c"]


def test_some_of_many() -> None:
    """`n` draws some of them, the same ones for the same seed."""
    asked: dict[str, Any] = {"prompts": ["{a|b|c|d|e|f|g|h}" * 40], "expand": True, "seed": 5, "n": 7}
    found, again = combined(**asked), combined(**asked)
    prompts = [request.prompt for request in found.requests]
    assert len(set(prompts)) == 7
    assert prompts == [request.prompt for request in again.requests]
    assert len(combined(prompts=["a"], n=5).own) == 1


@pytest.mark.parametrize(
    ("kind", "param", "data"),
    [
        (InvalidRequest, "prompt", {"prompt": "a", "prompts": ["b"]}),
        (InvalidRequest, "prompts", {}),
        (InvalidRequest, "prompts", {"prompts": []}),
        (InvalidRequest, "prompts", {"prompts": ["a", "b", "c", "d"]}),
        (InvalidRequest, "n", {"prompts": ["{a|b|c|d|e}"], "expand": True, "n": 4}),
        (InvalidRequest, "matrix", {"prompts": ["a"], "matrix": {"size": ["64x64"]}}),
        (InvalidRequest, "matrix", {"prompts": ["a"], "matrix": {"steps": ["many"]}}),
        (InvalidRequest, "steps", {"prompts": ["a"], "matrix": {"steps": [-3]}}),
        (UnknownSampler, "sampler", {"prompts": ["a"], "matrix": {"sampler": ["fast"]}}),
    ],
)
def test_refusals(kind: type[InvalidRequest], param: str, data: dict[str, Any]) -> None:
    """What is wrong is named."""
    with pytest.raises(kind) as caught:
        combined(max_set=3, **data)
    assert caught.value.param == param


def test_strengths_of_one_variation() -> None:
    """Its seed is drawn once for all; where nothing is varied there is none."""
    found = combined(prompts=["a"], matrix={"variation_strength": [0, 0.5, 1]})
    assert [request.variation_strength for request in found.requests] == [0, 0.5, 1]
    assert len({request.variation_seed for request in found.requests} - {None}) == 1
    assert combined(prompts=["a"], seed=3).shared.variation_seed is None
