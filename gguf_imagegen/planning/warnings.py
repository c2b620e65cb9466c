"""Warnings, so many that somebody may read them."""

from __future__ import annotations

from collections.abc import Sequence

MOST = 20


def few(warnings: Sequence[str]) -> list[str]:
    """The first MOST; how many more there are is one further line."""
    more = len(warnings) - MOST
    return [*warnings[:MOST], f"… and {more} more"] if more > 0 else list(warnings)
