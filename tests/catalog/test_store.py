"""The models folder: states read from the disk, locks between processes, and nothing outside is touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.store import Store, sha256_of, size_words
from gguf_imagegen.vocabulary.errors import DiskFull, InvalidModelFile, ModelBusy, UnsupportedOperation

DATA = b"weights" * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
PUBLISHED = Source(repo="org/m", file="m.gguf", bytes=len(DATA), sha256=SHA256)
UNKNOWN = Source(repo="org/m", file="m.gguf")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def silent(done: int, total: int) -> None:
    """No progress is shown."""


def put(store: Store, source: Source, data: bytes = DATA) -> Path:
    """The file as a user would put it there by hand."""
    path = store.make_room_for(store.path(source.path))
    path.write_bytes(data)
    return path


def entry(id: str, **sources: Source) -> Entry:
    files = {role: source.path for role, source in sources.items()}
    return Entry.model_validate({"id": id, "family": "ovis-image", "files": files, "sources": sources})


def test_states_follow_the_disk(store: Store) -> None:
    """A file goes from absent over partial and verifying to ready, and each is seen from the disk alone."""
    assert store.state(PUBLISHED) == "absent"
    key = SHA256[:16]
    partial = store.make_room_for(store.beside(PUBLISHED.path, f"{key}.partial"))
    partial.write_bytes(DATA[:10])
    assert store.state(PUBLISHED) == "partial"
    partial.rename(store.beside(PUBLISHED.path, f"{key}.verifying"))
    assert store.state(PUBLISHED) == "verifying"
    put(store, PUBLISHED)
    assert store.state(PUBLISHED) == "unverified"
    store.note(PUBLISHED.path, SHA256)
    assert store.state(PUBLISHED) == "ready"
    put(store, PUBLISHED, DATA[:-1])
    assert store.state(PUBLISHED) == "corrupt"


def test_a_record_ends_with_a_change(store: Store) -> None:
    """A file that was touched after its verification is unverified again, and still usable."""
    path = put(store, PUBLISHED)
    store.note(PUBLISHED.path, SHA256)
    os.utime(path, ns=(0, 0))
    assert store.state(PUBLISHED) == "unverified"
    assert not store.wanted(PUBLISHED)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"size": 1}', '"x"'])
def test_a_broken_record_is_no_record(store: Store, text: str) -> None:
    """What is not a whole record counts as none."""
    put(store, PUBLISHED)
    store.make_room_for(store.beside(PUBLISHED.path, "json")).write_text(text)
    assert store.state(PUBLISHED) == "unverified"


def test_a_newer_catalog_wants_the_file_anew(store: Store) -> None:
    """A file verified as another content than the catalog's is wanted, a user's own file is not."""
    put(store, PUBLISHED)
    assert not store.wanted(PUBLISHED)
    store.note(PUBLISHED.path, "0" * 64)
    assert store.wanted(PUBLISHED)


@pytest.mark.parametrize("name", ["../x.gguf", "/etc/passwd", "a/../../x.gguf", "."])
def test_no_path_leads_out(store: Store, name: str) -> None:
    """Absolute names and those with '..' are refused, without the folder's own path in the words."""
    with pytest.raises(InvalidModelFile) as refused:
        store.path(Path(name))
    assert "/" not in refused.value.message


def test_no_link_leads_out(store: Store, tmp_path: Path) -> None:
    """A folder that is a link out of the models folder is refused by every way to write or delete."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "m.gguf").write_bytes(DATA)
    (tmp_path / "models" / "org").mkdir(parents=True)
    (tmp_path / "models" / "org" / "m").symlink_to(outside)
    for act in (
        lambda: store.remove([entry("m", model=PUBLISHED)], []),
        lambda: store.verify(PUBLISHED, silent),
        lambda: store.note(PUBLISHED.path, SHA256),
    ):
        with pytest.raises(InvalidModelFile):
            act()
    assert [path.name for path in outside.iterdir()] == ["m.gguf"]


def test_a_link_is_removed_and_its_target_is_not(store: Store, tmp_path: Path) -> None:
    """A file that is a link out of the models folder loses the link alone."""
    target = tmp_path / "big-disk.gguf"
    target.write_bytes(DATA)
    store.make_room_for(store.path(PUBLISHED.path)).symlink_to(target)
    assert store.state(PUBLISHED) == "unverified"
    assert store.remove([entry("m", model=PUBLISHED)], []).removed == ("org/m/m.gguf",)
    assert target.read_bytes() == DATA
    assert not list((tmp_path / "models").glob("org"))


def test_verify_finds_the_right_hash(store: Store) -> None:
    """A right file becomes ready, one without a published hash stays unverified with its hash told."""
    put(store, PUBLISHED)
    assert store.verify(UNKNOWN, silent).state == "unverified"
    assert store.verify(UNKNOWN, silent).sha256 == SHA256
    assert store.verify(UNKNOWN, silent, SHA256).state == "ready"
    assert store.state(PUBLISHED) == "ready"


@pytest.mark.parametrize("wrong", [b"Weights" + DATA[7:], DATA[:-1]], ids=["bit", "size"])
def test_verify_sets_a_wrong_file_aside(store: Store, wrong: bytes) -> None:
    """A wrong file is no longer where it would be loaded, and is kept beside until the next pull."""
    path = put(store, PUBLISHED, wrong)
    assert store.verify(PUBLISHED, silent).state == "corrupt"
    assert not path.exists()
    assert store.state(PUBLISHED) == "corrupt"
    assert store.beside(PUBLISHED.path, "corrupt").read_bytes() == wrong


def test_verify_of_a_rewritten_file(store: Store) -> None:
    """A rewritten file is compared with the hash that it had when it was made."""
    source = PUBLISHED.model_copy(update={"rename": "text-encoders"})
    path = put(store, source, b"rewritten")
    store.note(source.path, SHA256, sha256_of(path, silent))
    assert store.verify(source, silent).state == "ready"
    record = store.record(source.path)
    assert record is not None
    assert record.sha256 == SHA256
    path.write_bytes(b"rewrittem")
    os.utime(path, ns=(record.mtime_ns, record.mtime_ns))
    assert store.verify(source, silent).state == "corrupt"


def test_hash_tells_how_far_it_is(store: Store) -> None:
    """Progress grows to the total, and an exception in it ends the work."""
    path = put(store, UNKNOWN, bytes(9_000_000))
    told: list[int] = []
    sha256_of(path, lambda done, total: told.append(done))
    assert told == [4_194_304, 8_388_608, 9_000_000]
    with pytest.raises(KeyboardInterrupt):
        store.verify(UNKNOWN, lambda done, total: (_ for _ in ()).throw(KeyboardInterrupt))
    with store.locked(UNKNOWN.path):
        pass


def test_remove_keeps_what_others_use(store: Store, tmp_path: Path) -> None:
    """A component of another model on disk stays; all else about the model goes, with the empty folders."""
    shared = Source(repo="org/shared", file="vae.safetensors")
    put(store, PUBLISHED)
    put(store, shared)
    store.note(PUBLISHED.path, SHA256)
    store.make_room_for(store.beside(PUBLISHED.path, f"{'0' * 16}.partial")).write_bytes(b"xyz")
    one, two = entry("one", model=PUBLISHED, vae=shared), entry("two", vae=shared)
    removal = store.remove([one], [two])
    assert removal.removed == ("org/m/m.gguf",)
    assert removal.kept == ("org/shared/vae.safetensors",)
    assert removal.freed == len(DATA) + 3
    left = sorted(
        path.relative_to(tmp_path / "models").as_posix() for path in (tmp_path / "models").rglob("*")
    )
    assert left == [".state", "org", "org/shared", "org/shared/vae.safetensors"]
    assert store.remove([two], []).removed == ("org/shared/vae.safetensors",)


def test_remove_refuses_files_that_are_not_the_folders(store: Store, tmp_path: Path) -> None:
    """Packaged models and bare files given by a path are no business of the models folder."""
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(DATA)
    one = Entry(id="bare", family="ovis-image", files={"model": bare})
    with pytest.raises(UnsupportedOperation):
        store.remove([one], [])
    with pytest.raises(UnsupportedOperation):
        store.remove([Entry(id="p", family="ovis-image", files={"model": Path("x.gguf")}, packaged=True)], [])
    assert bare.exists()


def test_one_writer_at_a_time(store: Store, tmp_path: Path) -> None:
    """A second process is told who holds the file, and the lock of a killed process is free."""
    code = (
        "import sys; from pathlib import Path; from gguf_imagegen.catalog.store import Store\n"
        f"with Store(Path({str(tmp_path / 'models')!r})).locked(Path('org/m/m.gguf')):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ModelBusy, match=f"m.gguf is being .* by another process .process {holder.pid}."):
            store.remove([entry("m", model=PUBLISHED)], [])
        holder.kill()
        holder.wait(60)
    with store.locked(PUBLISHED.path), pytest.raises(ModelBusy), store.locked(PUBLISHED.path):
        raise AssertionError("held twice")
    assert not store.beside(PUBLISHED.path, "lock").exists()


def test_space_is_told_in_numbers(tmp_path: Path) -> None:
    """Too little space is refused with what is needed, what there is and what to do."""
    store = Store(tmp_path, lambda folder: 1_000_000_000)
    store.require_space(900_000_000)
    with pytest.raises(DiskFull) as full:
        store.require_space(6_900_000_000)
    assert full.value.message.startswith(
        "the disk of the models folder is too full: 6.9 GB are still to come and 1.0 GB are free; free 6.0 GB"
    )


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "2 kB"), (6_940_000_000, "6.9 GB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    """Sizes are in the decimal units of disks."""
    assert size_words(count) == words
