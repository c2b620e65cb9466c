"""The benches' command is the one that docs/performance.md tells of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scripts.bench.__main__ import BENCHES, parser

PAGE = (Path(__file__).parents[1] / "docs" / "performance.md").read_text(encoding="utf-8")
CALLS = re.findall(r"scripts\.bench (--[^`#\n]+)", PAGE)


@pytest.mark.parametrize("words", sorted(set(CALLS)))
def test_what_the_page_calls_is_understood(words: str) -> None:
    """Each of its calls has flags and benches that are there."""
    assert parser().parse_args(shlex.split(words))


def test_every_bench_is_named() -> None:
    """In the help, and so for `--only`."""
    told = parser().format_help()
    assert all(name in told for name in BENCHES)
