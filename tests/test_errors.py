"""The errors as they are drawn are the errors as they are."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator

import pytest

from gguf_imagegen.vocabulary import errors
from gguf_imagegen.vocabulary.errors import ImagegenError

KINDS = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, ImagegenError)
}


def drawn() -> Iterator[tuple[str, str, int]]:
    """Name, parent's name and status of each error in the tree: what its line states, or its parent's."""
    above = {-1: ("Exception", 500)}
    for line in (errors.__doc__ or "").splitlines():
        names = re.match(r"    ([│├└─ ]*)((?:\w+(?: \(\d+\))?(?:, |$|(?=:)))+)", line)
        if names is None:
            continue
        depth = len(names[1]) // 4
        parent, status = above[depth - 1]
        for name, stated in reversed(re.findall(r"(\w+)(?: \((\d+)\))?", names[2])):
            status = int(stated or status)
            above[depth] = name, status
            yield name, parent, status


def test_the_tree_is_that_of_the_classes() -> None:
    """Each class stands in it once, below its base, with its status."""
    assert sorted(drawn()) == sorted(
        (name, kind.__base__.__name__, kind.status) for name, kind in KINDS.items() if kind.__base__
    )


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_bare_error_says_the_same(kind: type[ImagegenError]) -> None:
    """A copy for each who waits: same words and advice, no trace of the others."""
    error = kind("that is wrong", param="size")
    error.retry_after = 5
    try:
        try:
            raise ValueError
        except ValueError as exc:
            raise error from exc
    except ImagegenError:
        bare = error.bare()
    assert (type(bare), str(bare), bare.body(), bare.retry_after) == (kind, str(error), error.body(), 5)
    assert (bare.__traceback__, bare.__cause__, bare.__context__) == (None, None, None)
    assert copy.copy(bare).body() == error.body()
