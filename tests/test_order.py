"""The order of the tests: those that take long begin first, wherever xdist runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONG, long_first


@dataclass(frozen=True)
class Item:
    """What a test has of pytest's."""

    path: Path
    number: int


@pytest.mark.parametrize(("count", "workers"), [(47, 3), (47, 1), (7, 5), (3, 5), (0, 2)])
@pytest.mark.parametrize("every", [1, 4, 50])
def test_long_ones_begin_each_share(count: int, workers: int, every: int) -> None:
    """None is lost, and each share, as `--dist worksteal` cuts them, begins with its part of them."""
    items: list[Any] = [
        Item(Path("test_other.py" if number % every else f"tests/{LONG[0]}"), number)
        for number in range(count)
    ]
    ordered: list[Any] = list(long_first(items, workers))
    assert sorted(item.number for item in ordered) == list(range(count))
    if workers == 1:
        assert ordered == items
    elif every > 1:
        begins = 0
        for worker in range(workers):
            share = ordered[begins : begins + (count - begins) // (workers - worker)]
            begins += len(share)
            long = [item.path.name == LONG[0] for item in share]
            assert long == sorted(long, reverse=True)
            assert sum(long) >= min(len(share), -(-count // every) // workers)


def test_what_is_long_is_there() -> None:
    """A name that no module or folder has any more would say nothing."""
    assert set(LONG) <= {path.name for path in Path(__file__).parent.rglob("*")}
