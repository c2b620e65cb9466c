"""The order of the tests: those that take long begin first, wherever xdist runs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONG, TESTS, long_first


@dataclass(frozen=True)
class Item:
    """What a test has of pytest's."""

    path: Path
    number: int


@pytest.mark.parametrize(("count", "workers"), [(470, 3), (470, 1), (470, 8), (7, 5), (3, 5), (0, 2)])
@pytest.mark.parametrize("every", [1, 4, 50])
def test_long_ones_begin_each_share(count: int, workers: int, every: int) -> None:
    """None is lost, and a group is at the beginning of one share, as `--dist worksteal` cuts them."""
    names = [name for group in LONG for name in group]
    items: list[Any] = [
        Item(TESTS / ("test_other.py" if number % every else names[number // every % len(names)]), number)
        for number in range(count)
    ]
    ordered: list[Any] = list(long_first(items, workers))
    assert sorted(item.number for item in ordered) == list(range(count))
    if workers == 1:
        assert ordered == items
        return
    begins = 0
    shares = []
    for worker in range(workers):
        shares.append(ordered[begins : begins + (count - begins) // (workers - worker)])
        begins += len(shares[-1])
    long = [item for item in items if item.path.name != "test_other.py"]
    if len(long) < count // workers:
        for worker, share in enumerate(shares):
            first = [item for group in LONG[worker::workers] for item in long if _in(item, group)]
            assert share[: len(first)] == first


def _in(item: Any, group: tuple[str, ...]) -> bool:
    return any(item.path == TESTS / name for name in group)


def test_what_is_long_is_there() -> None:
    """A name that no module or folder has any more would say nothing."""
    assert [name for group in LONG for name in group if not (TESTS / name).exists()] == []
