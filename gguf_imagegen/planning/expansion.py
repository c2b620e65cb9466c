"""Prompts that stand for many: `{a|b}` means each of these, `__name__` each line of a wildcard file.

The syntax is that of the Dynamic Prompts extension of AUTOMATIC1111 as far as it says "each of these".
Nothing is written out before it is asked for: a prompt for millions costs no more than one for two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from gguf_imagegen.vocabulary.errors import InvalidRequest

MOST_NESTED = 8
MOST_BYTES = 1 << 20
"""Of a wildcard file."""
COUNTLESS = 10**12
_TOKEN = re.compile(r"\\([{}|_\\])|__([\w./-]+?)__|([{}|])")


@dataclass(frozen=True)
class Sequel:
    """Parts that follow each other."""

    parts: tuple[Part, ...]

    @property
    def count(self) -> int:
        count = 1
        for part in self.parts:
            count = min(COUNTLESS, count * count_of(part))
        return count

    def text(self, number: int) -> str:
        """Text `number` of them; the last part changes fastest."""
        texts: list[str] = []
        for part in reversed(self.parts):
            number, own = divmod(number, count_of(part))
            texts.append(part if isinstance(part, str) else part.text(own))
        return "".join(reversed(texts))


@dataclass(frozen=True)
class Choice:
    """One of these."""

    options: tuple[Sequel, ...]

    @property
    def count(self) -> int:
        return min(COUNTLESS, sum(option.count for option in self.options))

    def text(self, number: int) -> str:
        for option in self.options:
            if number < option.count:
                return option.text(number)
            number -= option.count
        raise IndexError(number)


Part: TypeAlias = str | Sequel | Choice
Lines = Callable[[str], Sequence[str]]
"""The lines of the wildcard of a name; raises InvalidRequest if there is none."""


def count_of(part: Part) -> int:
    return 1 if isinstance(part, str) else part.count


def expanded(prompt: str, lines: Lines) -> Sequel:
    """What a prompt stands for. Raises InvalidRequest for braces without an end, and unknown wildcards."""
    return _Reader(lines).read(prompt, 0)


class _Reader:
    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def read(self, text: str, depth: int) -> Sequel:
        """Everything up to the end of the text."""
        if depth > MOST_NESTED:
            raise InvalidRequest(
                f"prompts: choices and wildcards nest more than {MOST_NESTED} levels deep", param="prompts"
            )
        open: list[list[list[Part]]] = [[[]]]  # choices around this place, their options, and parts of those
        place = 0
        for token in _TOKEN.finditer(text):
            open[-1][-1].append(text[place : token.start()])
            place = token.end()
            escaped, wildcard, mark = token.groups()
            if escaped is not None:
                open[-1][-1].append(escaped)
            elif wildcard is not None:
                options = tuple(self.read(line, depth + 1) for line in self._lines(wildcard))
                open[-1][-1].append(Choice(options))
            else:
                self._mark(open, mark, depth)
        open[-1][-1].append(text[place:])
        if len(open) > 1:
            raise InvalidRequest("prompts: a '{' has no '}'; write \\{ for the brace itself", param="prompts")
        return _sequel(open[0][0])

    def _mark(self, open: list[list[list[Part]]], mark: str, depth: int) -> None:
        if mark == "{":
            open.append([[]])
            if len(open) + depth > MOST_NESTED + 1:
                raise InvalidRequest(
                    f"prompts: braces nest more than {MOST_NESTED} levels deep", param="prompts"
                )
        elif mark == "|" and len(open) > 1:
            open[-1].append([])
        elif mark == "|":
            open[-1][-1].append(mark)
        elif len(open) > 1:
            options = open.pop()
            open[-1][-1].append(Choice(tuple(map(_sequel, options))))
        else:
            raise InvalidRequest("prompts: a '}' has no '{'; write \\} for the brace itself", param="prompts")


def _sequel(parts: Sequence[Part]) -> Sequel:
    return Sequel(tuple(part for part in parts if part != ""))


class Wildcards:
    """The text files of a folder, and of folders in it, each read once; what starts with # is a comment."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._read: dict[str, Sequence[str]] = {}

    def lines(self, name: str) -> Sequence[str]:
        if name not in self._read:
            self._read[name] = self._lines(name)
        return self._read[name]

    def _lines(self, name: str) -> Sequence[str]:
        if self._folder is None:
            raise InvalidRequest(
                f"prompts: __{name[:60]}__ needs wildcard files; the administrator names their folder with"
                " --wildcards-dir",
                param="prompts",
            )
        path = self._folder / f"{name}.txt"
        inside = not any(part.startswith(".") for part in name.split("/")) and path.is_file()
        if not inside or not path.resolve().is_relative_to(self._folder.resolve()):
            known = sorted(each.stem for each in self._folder.glob("*.txt"))[:20]
            there = ", ".join(known) or "there are none"
            raise InvalidRequest(f"prompts: no wildcard {name[:60]!r}; known: {there}", param="prompts")
        if path.stat().st_size > MOST_BYTES:
            raise InvalidRequest(f"prompts: the wildcard {name[:60]!r} is too large", param="prompts")
        rows = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        found = [row.strip() for row in rows if row.strip() and not row.lstrip().startswith("#")]
        if not found:
            raise InvalidRequest(f"prompts: the wildcard {name[:60]!r} is empty", param="prompts")
        return found
