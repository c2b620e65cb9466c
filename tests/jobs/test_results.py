"""Results: what was put can be got, for as long as it may, whatever the disk does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gguf_imagegen.jobs import results
from gguf_imagegen.jobs.results import NAME, ResultStore
from gguf_imagegen.vocabulary.errors import NotFound

DAY = 86_400.0


def wait_until_expired(store: ResultStore, name: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            store.get(name)
        except NotFound:
            return
        time.sleep(0.005)
    raise AssertionError("the image did not expire")


@pytest.mark.parametrize("extension", ["png", "jpeg", "webp"])
def test_what_is_put_can_be_got(extension: str, tmp_path: Path) -> None:
    """The same bytes come back under the name, which is a dated file in the folder and nothing else."""
    store = ResultStore(tmp_path / "new" / "folder", DAY)
    name, on_disk = store.put(b"bytes", extension)
    assert on_disk
    assert NAME.fullmatch(name)
    assert name.endswith(f".{extension}")
    assert store.get(name) == b"bytes"
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [name]


def test_all_pictures_are_listed(tmp_path: Path) -> None:
    """However many an earlier run has left, the newest first."""
    made = [f"20260103-{number:06d}-{'x' * 24}.png" for number in range(2001)]
    for name in made:
        (tmp_path / name).touch()
    assert ResultStore(tmp_path, DAY).names() == made[::-1]


def test_names_cannot_be_guessed(tmp_path: Path) -> None:
    """Names share the date and time only, and have 144 random bits."""
    store = ResultStore(tmp_path, DAY)
    names = [store.put(b"x", "png")[0] for _ in range(50)]
    assert len({name[23:] for name in names}) == 50
    assert all(len(name[23:].removesuffix(".png")) == 24 for name in names)


def test_only_names_given_out_are_read(tmp_path: Path) -> None:
    """A file that lies in the folder, or beside it, is not an image of this server."""
    store = ResultStore(tmp_path / "images", DAY)
    name, _ = store.put(b"x", "png")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "images" / "holiday.png").write_bytes(b"secret")
    others = ("../secret.png", str(tmp_path / "secret.png"), "holiday.png", "", ".", f"./{name}", f"{name}\0")
    for wrong in others:
        with pytest.raises(NotFound):
            store.get(wrong)


def test_images_expire_and_are_swept() -> None:
    """After the time to live an image is not found; a sweep takes its file away, and younger ones stay."""
    store = ResultStore(None, 0.01)
    name, _ = store.put(b"x", "png")
    folder = store._ensure_folder()
    wait_until_expired(store, name)
    assert (folder / name).is_file()
    store.sweep()
    assert not (folder / name).exists()
    store.ttl = DAY
    young, _ = store.put(b"y", "png")
    store.sweep()
    assert store.get(young) == b"y"
    store.close()
    assert not folder.exists()


def test_the_users_own_folder_is_kept(tmp_path: Path) -> None:
    """Files in --output-dir stay and can be read, also by the next server; other files there cannot."""
    store = ResultStore(tmp_path, 0.0)
    name, _ = store.put(b"x", "png")
    (tmp_path / "holiday.png").write_bytes(b"secret")
    store.sweep()
    store.close()
    again = ResultStore(tmp_path, DAY)
    later, _ = again.put(b"y", "png")
    assert again.get(name) == b"x"
    assert again.names() == [later, name]
    with pytest.raises(NotFound):
        again.get("holiday.png")


def test_deleted_images_are_gone(tmp_path: Path) -> None:
    """From the list, from the disk, and once only."""
    for store in (ResultStore(tmp_path, DAY), ResultStore(None, DAY)):
        name, _ = store.put(b"x", "png")
        other, _ = store.put(b"y", "png")
        store.delete(name)
        assert store.names() == [other]
        with pytest.raises(NotFound):
            store.delete(name)
        store.close()
    assert [path.name for path in tmp_path.iterdir()] == ResultStore(tmp_path, DAY).names()


def test_a_disk_error_keeps_the_image_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder that cannot be made loses no picture; the log names no path."""
    (tmp_path / "file").write_bytes(b"")
    store = ResultStore(tmp_path / "file" / "below", 3600)
    name, on_disk = store.put(b"bytes", "png")
    assert not on_disk
    assert store.get(name) == b"bytes"
    assert "keeping it in memory" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_memory_expires_too(tmp_path: Path) -> None:
    """What is in memory is given free when its time is over."""
    (tmp_path / "file").write_bytes(b"")
    store = ResultStore(tmp_path / "file", 0.01)
    name, _ = store.put(b"bytes", "png")
    wait_until_expired(store, name)
    store.sweep()
    store.ttl = DAY
    with pytest.raises(NotFound):
        store.get(name)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """With the disk gone for long, the oldest images go first and the newest always stays."""
    (tmp_path / "file").write_bytes(b"")
    store = ResultStore(tmp_path / "file", DAY)
    large = bytes(results.MAX_IN_MEMORY // 2)
    names = [store.put(large, "png")[0] for _ in range(3)]
    with pytest.raises(NotFound):
        store.get(names[0])
    assert len(store.get(names[1])) == len(store.get(names[2])) == len(large)


def test_a_lost_file_is_not_found(tmp_path: Path) -> None:
    """Somebody emptied the folder: 404, not an error of the server."""
    store = ResultStore(tmp_path, DAY)
    name, _ = store.put(b"x", "png")
    (tmp_path / name).unlink()
    with pytest.raises(NotFound):
        store.get(name)
