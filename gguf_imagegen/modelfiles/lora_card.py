"""What a LoRA's file says of itself: the model it was made for, and the words that call it up.

Trainers write it into the metadata of safetensors: https://github.com/Stability-AI/ModelSpec, and the `ss_*`
of kohya's scripts.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.vocabulary.errors import InvalidModelFile

MOST_WORDS = 8
MOST_LETTERS = 200
_BASES = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")
_LONGEST_TAGS = 2 << 20


@dataclass(frozen=True)
class LoraCard:
    """Empty where the file does not say. Words of training data come with the most frequent ones first."""

    base_model: str = ""
    trigger_words: tuple[str, ...] = ()


def lora_card(path: Path) -> LoraCard:
    """Read from the header, once for each state of the file; an unreadable file says nothing."""
    try:
        state = path.stat()
    except OSError:
        return LoraCard()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(1024)
def _read(path: Path, _changed: int, _size: int) -> LoraCard:
    try:
        said = read_header(path).metadata
    except InvalidModelFile:
        return LoraCard()
    base = next((said[key] for key in _BASES if said.get(key)), "")
    return LoraCard(_plain(base.removesuffix("/lora")), _trigger_words(said))


def _trigger_words(said: Mapping[str, str]) -> tuple[str, ...]:
    """As its maker says, else the captions' most frequent tags."""
    if phrase := said.get("modelspec.trigger_phrase"):
        words = [_plain(word) for word in phrase.split(",")]
    else:
        words = [_plain(tag) for tag, _ in _tags(said.get("ss_tag_frequency", "")).most_common(MOST_WORDS)]
    return tuple(word for word in words if word)[:MOST_WORDS]


def _tags(text: str) -> Counter[str]:
    """kohya's `{"folder": {"tag": count}}`, all folders together."""
    counts: Counter[str] = Counter()
    try:
        folders = json.loads(text) if len(text) <= _LONGEST_TAGS else {}
    except (ValueError, RecursionError):
        return counts
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            counts[tag] += count if isinstance(count, int) else 0
    return counts


def _plain(text: str) -> str:
    """On one line, without what cannot be shown, and not long."""
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip()[:MOST_LETTERS]
