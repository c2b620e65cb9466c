"""What a small model knows by name, so that a prompt of other words is answered with a hint.

The file has a name in each line, several words allowed; after an empty line come words that are understood
beside names.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from gguf_imagegen.catalog.entry import Entry

_WORDS = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
LIKE = 3  # names that are told for an unknown one


class Vocabulary:
    """Names and other words of a model, in any case."""

    def __init__(self, names: Iterable[str], words: Iterable[str] = ()) -> None:
        self.names = tuple(names)
        self._names = {tuple(_words(name)) for name in self.names}
        self._words = {word for text in words for word in _words(text)}
        self._longest = max(map(len, self._names), default=1)

    def read(self, prompt: str) -> tuple[list[str], list[str]]:
        """The names in a prompt, and what is neither a name nor a word beside names; neighbours are one.

        Names that stand together without a word between ("dragon boat") are one thing, and that is not known.
        """
        words, names, unknown, at = _words(prompt), list[str](), list[str](), 0
        while at < len(words):
            run = self._names_at(words, at)
            if len(run) == 1:
                names += run
            elif run:
                unknown.append(" ".join(run))
            elif words[at] not in self._words:
                run = self._strangers_at(words, at)
                unknown.append(" ".join(run))
            at += sum(len(part.split(" ")) for part in run) or 1
        return names, unknown

    def _names_at(self, words: list[str], at: int) -> list[str]:
        """Names that follow each other from here on."""
        found = []
        while size := self._size(words, at):
            found.append(" ".join(words[at : at + size]))
            at += size
        return found

    def _strangers_at(self, words: list[str], at: int) -> list[str]:
        """Words from here on that mean nothing."""
        end = at
        while end < len(words) and not self._size(words, end) and words[end] not in self._words:
            end += 1
        return words[at:end]

    def _size(self, words: list[str], at: int) -> int:
        """How many words make the longest name that starts here."""
        sizes = range(min(self._longest, len(words) - at), 0, -1)
        return next((size for size in sizes if tuple(words[at : at + size]) in self._names), 0)

    def like(self, text: str, otherwise: Iterable[str]) -> list[str]:
        """Names near to a text, by its words and by spelling; else some others."""
        words = set(_words(text))
        within = [name for name in self.names if words & set(_words(name))]
        spelled = difflib.get_close_matches(text, self.names, LIKE, cutoff=0.75)
        return list(dict.fromkeys([*within, *spelled]))[:LIKE] or list(otherwise)[:LIKE]


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())


@lru_cache(maxsize=8)
def read_vocabulary(path: Path) -> Vocabulary:
    names, _, words = path.read_text(encoding="utf-8").partition("\n\n")
    return Vocabulary(names.splitlines(), words.splitlines())


def unknown_words(entry: Entry, prompt: str) -> list[str]:
    """Notes for who asks a model for what it does not know; of one that knows any word there are none."""
    if entry.known_words is None:
        return []
    vocabulary, notes = read_vocabulary(entry.known_words), []
    names, unknown = vocabulary.read(prompt)
    for text in unknown[:LIKE]:
        near = ", ".join(f"{name!r}" for name in vocabulary.like(text, entry.examples))
        notes.append(f"prompt: {entry.id} knows no {text[:60]!r}; try {near}")
    if len(names) > 1:
        every = " and ".join(f"{name!r}" for name in names[:LIKE])
        notes.append(f"prompt: {entry.id} draws one thing at a time; {every} will blend")
    return notes
