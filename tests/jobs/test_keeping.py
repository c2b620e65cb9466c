"""Kept pictures: within size and age, the oldest go first, and nothing else is touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gguf_imagegen.jobs.keeping import LEFT_BEHIND
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.settings import Keep
from gguf_imagegen.vocabulary.errors import NotFound

HOUR = 3600.0
DAY = 86_400.0


def put(store: ResultStore, folder: Path, *, age: float = 0.0, size: int = 100) -> str:
    """A picture that was made so many seconds ago."""
    name, on_disk = store.put(bytes(size), "png")
    assert on_disk
    made = time.time() - age
    os.utime(folder / name, (made, made))
    return name


def test_the_oldest_go_first(tmp_path: Path) -> None:
    """Beyond the size as many as must; the next server reads what is left, under the same names."""
    store = ResultStore(tmp_path, HOUR, Keep(250, None))
    names = [put(store, tmp_path, age=age) for age in (3, 9, 6, 1)]
    store.sweep()
    store.close()
    again = ResultStore(tmp_path, HOUR, Keep(250, None))
    assert set(again.names()) == {names[0], names[3]}
    assert len(again.get(names[0])) == 100
    with pytest.raises(NotFound):
        again.get(names[1])


def test_old_ones_go(tmp_path: Path) -> None:
    """Beyond the age, however few there are."""
    store = ResultStore(tmp_path, HOUR, Keep(None, 30 * DAY))
    old, young = put(store, tmp_path, age=31 * DAY), put(store, tmp_path, age=29 * DAY)
    store.sweep()
    assert not (tmp_path / old).exists()
    assert (tmp_path / young).exists()


def test_pictures_of_jobs_are_kept_as_long_as_jobs(tmp_path: Path) -> None:
    """`none`, or an age below --job-ttl, still leaves them for their jobs' time."""
    for limits in (Keep(None, 0.0), Keep(None, 60.0)):
        store = ResultStore(tmp_path, HOUR, limits)
        old, young = put(store, tmp_path, age=HOUR + 60), put(store, tmp_path, age=HOUR - 60)
        store.sweep()
        assert not (tmp_path / old).exists()
        assert (tmp_path / young).exists()


def test_the_folder_is_read_when_something_may_be_due(tmp_path: Path) -> None:
    """Without a new picture an idle server leaves the disk alone, until the oldest is too old."""
    store = ResultStore(tmp_path, 0.0, Keep(250, DAY))
    put(store, tmp_path)
    store.sweep()
    stray = "20260101-000000-000000-" + "x" * 24 + ".png"
    (tmp_path / stray).write_bytes(bytes(1000))
    os.utime(tmp_path / stray, (1, 1))
    store.sweep()
    assert (tmp_path / stray).exists()
    put(store, tmp_path)
    store.sweep()
    assert not (tmp_path / stray).exists()


def test_other_files_stay(tmp_path: Path) -> None:
    """Only pictures are deleted, and what a killed server left half written."""
    store = ResultStore(tmp_path, HOUR, Keep(0, 0.0))
    name = put(store, tmp_path)
    files = {
        f".{name}.part": False,
        "holiday.png": True,
        ".holiday.part": True,
        name.replace("png", "gif"): True,
    }
    for file in files:
        (tmp_path / file).write_bytes(b"x")
        os.utime(tmp_path / file, (time.time() - LEFT_BEHIND - 60,) * 2)
    store.sweep()
    assert {file: (tmp_path / file).exists() for file in files} == files
    assert not (tmp_path / name).exists()


def test_kept_files_are_their_owners(tmp_path: Path) -> None:
    """Folder and files of the server's own, and not those of a folder that the user shares."""
    own, users = tmp_path / "own", tmp_path / "users"
    before = os.umask(0o022)
    try:
        names = (
            ResultStore(own, HOUR, Keep(None, None)).put(b"x", "png")[0],
            ResultStore(users, HOUR).put(b"x", "png")[0],
        )
    finally:
        os.umask(before)
    paths = own, own / names[0], users, users / names[1]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o700, 0o600, 0o755, 0o644]


def test_thumbnails_count_and_go_with_their_pictures(tmp_path: Path) -> None:
    """Their bytes are the picture's; one whose picture is gone is deleted, unless it is just being made."""
    store = ResultStore(tmp_path, HOUR, Keep(350, None))
    old, young = put(store, tmp_path, age=9), put(store, tmp_path, age=1)
    gone = "20260101-000000-000000-" + "x" * 24 + ".png"
    files = {
        f"{old}.128.webp": False,
        f"{young}.128.webp": True,
        f"{gone}.128.webp": False,
        "a.128.webp": True,
    }
    for file in files:
        (tmp_path / file).write_bytes(bytes(100))
    long_ago = time.time() - LEFT_BEHIND - 60
    os.utime(tmp_path / f"{gone}.128.webp", (long_ago, long_ago))
    (tmp_path / f"{gone}.256.webp").write_bytes(b"new")
    store.sweep()
    assert {file: (tmp_path / file).exists() for file in files} == files
    assert [(tmp_path / name).exists() for name in (old, young)] == [False, True]
    assert (tmp_path / f"{gone}.256.webp").exists()
