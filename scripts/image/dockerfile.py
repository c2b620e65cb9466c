"""A Dockerfile's stages and steps, as far as ours has them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template


@dataclass(frozen=True)
class Step:
    """Of `RUN --mount=from=a,target=/b c` the word is `RUN`, the rest `c`; the options are by name."""

    word: str
    options: Mapping[str, str]
    rest: str

    @property
    def mount(self) -> dict[str, str]:
        """What is mounted while it runs: `from`, `source` and `target`; empty for none."""
        pairs = (pair.partition("=") for pair in self.options.get("mount", "").split(",") if pair)
        return {name: value for name, _, value in pairs}

    def variables(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Of ENV and LABEL, with the variables in them replaced."""
        words = (word.partition("=") for word in shlex.split(self.rest))
        return {name: Template(value).safe_substitute(environment) for name, _, value in words}


@dataclass(frozen=True)
class Stage:
    """`base` is another stage's name, or an image of elsewhere."""

    name: str
    base: str
    steps: tuple[Step, ...]


def stages(text: str) -> dict[str, Stage]:
    """By name, in their order."""
    found: dict[str, Stage] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            found[name] = Stage(name, base, ())
        elif line and not line.startswith("#"):
            last = found[next(reversed(found))]
            found[last.name] = Stage(last.name, last.base, (*last.steps, _step(line)))
    return found


def _step(line: str) -> Step:
    word, _, rest = line.partition(" ")
    options = {}
    while match := re.match(r"\s*--([a-z-]+)=(\S+)\s+", rest):
        options[match[1]] = match[2]
        rest = rest[match.end() :]
    return Step(word, options, rest.strip())
