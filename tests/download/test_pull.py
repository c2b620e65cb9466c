"""Pulling with the real huggingface_hub from a hub of our own, which lets it down in every way it can."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest

from gguf_imagegen.catalog.entry import Entry, Source
from gguf_imagegen.catalog.store import Store, sha256_of
from gguf_imagegen.download.progress import Downloading, FileReady, Planned, PullEvent, Verifying
from gguf_imagegen.download.pull import ATTEMPTS, Pull
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    CorruptFile,
    DiskFull,
    HubFailed,
    HubFileChanged,
    HubFileNotFound,
    HubRepositoryNotFound,
    HubRevisionNotFound,
    HubTimeout,
    HubTokenInvalid,
    HubTokenMissing,
    HubUnreachable,
    LicenceNotAccepted,
    ModelBusy,
    PullFailed,
)
from tests.hub import HubServer
from tests.weights import split_gguf

MB = 1_000_000
TOKEN, OTHER = "hf_goodTokenOfATest", "hf_otherTokenOfATest"


class Puller:
    """Pulls into one folder, and remembers what was told."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        self.events: list[PullEvent] = []

    def make(self, *sources: Source, store: Store | None = None) -> Pull:
        roles = ("model", "vae", "clip_l")
        chosen = dict(zip(roles, sources, strict=False))
        files = {role: source.path for role, source in chosen.items()}
        entry = Entry.model_validate({"id": "m", "family": "ovis-image", "files": files, "sources": chosen})
        return Pull(store or self.store, entry.sources.values(), self.events.append, pause=0.001)

    def pull(self, *sources: Source) -> None:
        self.make(*sources).run()

    def read(self, source: Source) -> bytes:
        return self.store.path(source.path).read_bytes()

    def names(self) -> list[str]:
        """All files of the folder but records."""
        root = self.store.path(Path("x")).parent
        return sorted(
            p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file() and p.suffix != ".json"
        )


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(tmp_path / "models")


def add(
    hub: HubServer, name: str = "m.gguf", size: int = 2 * MB, known: Mapping[str, object] | None = None
) -> tuple[Source, bytes]:
    """A file on the hub; its source as a catalog names it, which may know less or something else."""
    data = np.random.default_rng(len(name)).bytes(size)
    return Source.model_validate({**hub.add("org/model", name, data), **(known or {})}), data


def test_a_pull_brings_exactly_the_files_of_the_model(hub: HubServer, puller: Puller) -> None:
    """The files are right, ready and alone, and a second pull asks the hub for nothing."""
    one, first = add(hub)
    two, second = add(hub, "folder/vae.safetensors")
    add(hub, "not-wanted.bin")
    puller.pull(one, two)
    assert (puller.read(one), puller.read(two)) == (first, second)
    assert {puller.store.state(source) for source in (one, two)} == {"ready"}
    assert puller.names() == ["org/model/folder/vae.safetensors", "org/model/m.gguf"]
    before = len(hub.served)
    puller.events.clear()
    puller.pull(one, two)
    assert len(hub.served) == before
    assert [event for event in puller.events if isinstance(event, FileReady)] == [
        FileReady("org/model/m.gguf", fetched=False),
        FileReady("org/model/folder/vae.safetensors", fetched=False),
    ]


def test_events_tell_how_far_it_is(hub: HubServer, puller: Puller) -> None:
    """A plan, then growing bytes with speed to the total, then the hash, then the end."""
    source, data = add(hub)
    puller.pull(source)
    name, size = "org/model/m.gguf", len(data)
    assert puller.events[0] == Planned(((name, size),), 0, size)
    assert puller.events[-1] == FileReady(name, fetched=True)
    kinds = [type(event) for event in puller.events[1:-1]]
    assert kinds == sorted(kinds, key=[Downloading, Verifying].index)
    bytes_done = [event.done for event in puller.events if isinstance(event, Downloading)]
    assert bytes_done == sorted(bytes_done)
    assert bytes_done[-1] == size
    assert all(event.speed > 0 for event in puller.events if isinstance(event, Downloading))


@pytest.mark.parametrize("known", [{"sha256": None}, {"bytes": None}, {"sha256": None, "bytes": None}])
def test_the_hub_knows_what_the_catalog_does_not(
    hub: HubServer, puller: Puller, known: dict[str, None]
) -> None:
    """Where the catalog is silent, the hub's size and hash are what counts."""
    source, data = add(hub, known=known)
    puller.pull(source)
    record = puller.store.record(source.path)
    assert record is not None
    assert record.sha256 == hashlib.sha256(data).hexdigest()


def test_a_file_in_git_has_no_hash_to_compare(hub: HubServer, puller: Puller) -> None:
    """A small file that the hub keeps in git comes over a redirect, by its size, and is unverified."""
    fields = hub.add("org/model", "config.json", b'{"a": 1}', in_git=True)
    source = Source.model_validate({**fields, "sha256": None})
    puller.pull(source)
    assert puller.read(source) == b'{"a": 1}'
    assert puller.store.state(source) == "unverified"


def test_the_token_goes_to_the_hub_alone(
    hub: HubServer, puller: Puller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gated file comes with a token, which the CDN never sees."""
    source, data = add(hub)
    hub.tokens.add(TOKEN)
    hub.repos["org/model"].gated, hub.repos["org/model"].readers = True, (TOKEN,)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    puller.pull(source)
    assert puller.read(source) == data
    assert {one.authorization for one in hub.contents} == {None}
    assert {one.authorization for one in hub.served if one not in hub.contents} == {f"Bearer {TOKEN}"}


def gate(hub: HubServer) -> None:
    hub.repos["org/model"].gated = True


@pytest.mark.parametrize(
    ("token", "spoil", "changes", "error", "words"),
    [
        (None, gate, {}, HubTokenMissing, "https://huggingface.co/org/model is gated: accept its licence"),
        ("hf_unknown", gate, {}, HubTokenInvalid, "check HF_TOKEN"),
        (
            OTHER,
            gate,
            {},
            LicenceNotAccepted,
            "https://huggingface.co/org/model is gated and the token's account",
        ),
        (None, None, {"repo": "org/none"}, HubRepositoryNotFound, "'org/none', or it is private"),
        (OTHER, None, {"repo": "org/none"}, HubRepositoryNotFound, "the hub has no repository 'org/none'"),
        (
            None,
            None,
            {"revision": "v9"},
            HubRevisionNotFound,
            "no revision 'v9' of https://huggingface.co/org",
        ),
        (None, None, {"file": "x.gguf"}, HubFileNotFound, "no file 'x.gguf' in org/model, revision main"),
        (
            None,
            None,
            {"sha256": "0" * 64},
            HubFileChanged,
            "not the one of the catalog, whose sha256 is 0000",
        ),
        (None, None, {"bytes": 7}, HubFileChanged, "not the one of the catalog, whose size is 7"),
    ],
)
def test_refusals_are_told_apart(
    hub: HubServer,
    puller: Puller,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    spoil: Callable[[HubServer], None] | None,
    changes: dict[str, object],
    error: type[PullFailed],
    words: str,
) -> None:
    """Each refusal has its class and one line that says what to do, without the token; nothing is sent."""
    source, _ = add(hub, known=changes)
    hub.tokens.add(OTHER)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    if spoil:
        spoil(hub)
    with pytest.raises(error) as refused:
        puller.pull(source)
    message = refused.value.message
    assert type(refused.value) is error
    assert words in message
    assert "\n" not in message
    assert not token or token not in message
    assert hub.sent == 0
    assert puller.names() == []


def test_a_cut_connection_is_taken_up_where_it_broke(hub: HubServer, puller: Puller) -> None:
    """However often the connection is cut, the file comes whole, and no byte comes twice."""
    source, data = add(hub)
    hub.faults.cut_after = 300_000
    puller.pull(source)
    assert puller.read(source) == data
    assert [one.range for one in hub.contents] == [
        None, *(f"bytes={start}-" for start in range(300_000, len(data), 300_000))
    ]  # fmt: skip
    assert hub.sent == len(data)


def test_dropped_connections_are_tried_again(hub: HubServer, puller: Puller) -> None:
    """A hub that drops every third connection is a nuisance, not an obstacle."""
    sources = [add(hub, f"{name}.gguf", 600_000)[0] for name in ("a", "bb")]
    hub.faults.drop_every = 3
    hub.faults.cut_after = 100_000
    puller.pull(*sources)
    assert {puller.store.state(source) for source in sources} == {"ready"}
    assert hub.sent == 2 * 600_000


def test_a_server_without_ranges_starts_again(hub: HubServer, puller: Puller) -> None:
    """Where the server cannot resume, the file is right all the same."""
    source, data = add(hub)
    hub.faults.cut_after, hub.faults.ignore_ranges = 300_000, True

    def repair() -> None:
        hub.wait_until("a second request", lambda: len(hub.contents) > 1)
        hub.faults.cut_after = None

    threading.Thread(target=repair, daemon=True).start()
    puller.pull(source)
    assert puller.read(source) == data
    assert hub.contents[-1].sent == len(data)


def test_server_errors_pass(hub: HubServer, puller: Puller) -> None:
    """A few server errors are waited out."""
    source, data = add(hub)
    hub.faults.statuses = [503, 500, 429]
    puller.pull(source)
    assert puller.read(source) == data


def test_server_errors_are_given_up(hub: HubServer, puller: Puller) -> None:
    """A hub that only fails is asked a bounded number of times."""
    source, _ = add(hub)
    hub.faults.forever = 502
    with pytest.raises(HubFailed, match=r"m\.gguf: the hub answers with status 502; try again later"):
        puller.pull(source)
    assert len(hub.contents) == ATTEMPTS


def test_a_refused_connection(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that is not there is told as such."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubUnreachable, match="check the network, HF_ENDPOINT and proxies"):
        puller.pull(Source(repo="org/model", file="m.gguf"))


def test_silence_is_a_timeout(hub: HubServer, puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops sending is left after HF_HUB_DOWNLOAD_TIMEOUT, and what came stays."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    source, data = add(hub)
    hub.faults.hold_after = 1
    with pytest.raises(HubTimeout):
        puller.pull(source)
    assert puller.store.state(source) == "partial"
    hub.release()
    puller.pull(source)
    assert puller.read(source) == data


def test_corrupt_content_is_deleted(hub: HubServer, puller: Puller) -> None:
    """Bytes of the right number and the wrong value never reach the place from which models are loaded."""
    source, data = add(hub)
    hub.faults.corrupt = True
    with pytest.raises(CorruptFile, match="it was deleted, pull again"):
        puller.pull(source)
    assert puller.names() == []
    assert puller.store.state(source) == "absent"
    hub.faults.corrupt = False
    puller.pull(source)
    assert puller.read(source) == data


def test_what_is_left_of_other_content_goes(hub: HubServer, puller: Puller) -> None:
    """A partial of older content is not taken up, and a corrupt file set aside goes with the new one."""
    source, data = add(hub)
    store = puller.store
    store.make_room_for(store.beside(source.path, f"{'ab' * 8}.partial")).write_bytes(b"old")
    store.beside(source.path, "corrupt").write_bytes(b"wrong")
    puller.pull(source)
    assert hub.contents[0].range is None
    assert puller.read(source) == data
    assert puller.names() == ["org/model/m.gguf"]


def test_a_whole_file_is_only_verified(hub: HubServer, puller: Puller) -> None:
    """A pull that was killed while it verified does not fetch again."""
    source, data = add(hub)
    store = puller.store
    assert source.sha256 is not None
    whole = store.make_room_for(store.beside(source.path, f"{source.sha256[:16]}.verifying"))
    whole.write_bytes(data)
    puller.pull(source)
    assert hub.sent == 0
    assert store.state(source) == "ready"


@pytest.mark.parametrize("bytes_before", [0, 1_500_000])
def test_cancel_ends_a_pull_that_waits(hub: HubServer, puller: Puller, bytes_before: int) -> None:
    """A cancel from another thread ends a pull that hangs on a silent server at once; the next goes on."""
    source, data = add(hub)
    hub.faults.hold_after = max(bytes_before, 1)
    pull = puller.make(source)
    ended: list[float] = []

    def cancel() -> None:
        hub.wait_until("the hub holds", lambda: hub.sent >= max(bytes_before, 1))
        ended.append(time.monotonic())
        pull.cancel()

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(Cancelled):
        pull.run()
    assert time.monotonic() - ended[0] < 5
    hub.release()
    puller.pull(source)
    assert puller.read(source) == data
    assert puller.names() == ["org/model/m.gguf"]


def test_one_fault_ends_the_other_files(hub: HubServer, puller: Puller) -> None:
    """When one file cannot be had, the others are not fetched to the end, and the fault is what is told."""
    one, _ = add(hub)
    two, _ = add(hub, "vae.safetensors")
    hub.faults.hold_after = 500_000
    hub.faults.statuses = [404]
    with pytest.raises(HubFileNotFound):
        puller.pull(one, two)
    assert hub.sent <= 500_000
    assert "ready" not in {puller.store.state(source) for source in (one, two)}


def test_a_second_puller_is_refused(hub: HubServer, puller: Puller) -> None:
    """Two pulls of one file never write it at the same time."""
    source, data = add(hub)
    hub.faults.hold_after = 1
    first = threading.Thread(target=puller.pull, args=(source,))
    first.start()
    hub.wait_until("the hub holds", lambda: hub.sent >= 1)
    with pytest.raises(ModelBusy, match=f"m.gguf is being pulled.*process {os.getpid()}"):
        puller.pull(source)
    hub.release()
    first.join(60)
    assert puller.read(source) == data


def test_too_little_space_is_known_before(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """Nothing is fetched when it would not fit; a file that is rewritten needs its size twice."""
    source, data = add(hub)
    tight = Store(tmp_path / "models", lambda folder: (64 << 20) + 3 * MB)
    with pytest.raises(DiskFull, match="4 MB are still to come and 70 MB are free"):
        puller.make(source.model_copy(update={"rename": "text-encoders"}), store=tight).run()
    assert hub.sent == 0
    puller.make(source, store=tight).run()
    assert puller.read(source) == data


def test_a_folder_that_cannot_be_written(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """An error of the disk is one line without a path."""
    source, _ = add(hub)
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(PullFailed) as failed:
        puller.pull(source)
    assert os.strerror(errno.ENOTDIR) in failed.value.message or "File exists" in failed.value.message
    assert str(tmp_path) not in failed.value.message


def write_llamabox_model(path: Path) -> None:
    """A GGUF with the names of a FLUX whose text encoders sd.cpp would pass over."""
    writer = gguf.GGUFWriter(str(path), "flux")
    for name in (
        "model.diffusion_model.double_blocks.0.img_attn.proj.weight",
        "model.diffusion_model.single_blocks.0.linear1.weight",
        "model.diffusion_model.img_in.weight",
        "model.diffusion_model.guidance_in.in_layer.weight",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.1.transformer.shared.weight",
    ):
        writer.add_tensor(name, np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_text_encoders_are_renamed(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """The rewritten file is what is loaded, its record has the published hash, the original is gone."""
    write_llamabox_model(tmp_path / "model.gguf")
    fields = hub.add("org/model", "m.gguf", (tmp_path / "model.gguf").read_bytes())
    source = Source.model_validate({**fields, "rename": "text-encoders"})
    puller.pull(source)
    assert puller.names() == ["org/model/m.text-encoders.gguf"]
    assert any(
        name.startswith("text_encoders.clip_l.")
        for name in read_header(puller.store.path(source.path)).tensors
    )
    record = puller.store.record(source.path)
    assert record is not None
    assert record.sha256 == source.sha256 != record.content
    assert puller.store.verify(source, lambda done, total: None).state == "ready"
    assert puller.store.state(source) == "ready"


def test_a_rewriting_that_was_killed_is_done_again(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """With the original verified in its place, only the rewriting is left, and the hub is not asked."""
    write_llamabox_model(tmp_path / "model.gguf")
    data = (tmp_path / "model.gguf").read_bytes()
    fields = hub.add("org/model", "m.gguf", data)
    source = Source.model_validate({**fields, "rename": "text-encoders"})
    store = puller.store
    original = store.make_room_for(store.path(source.downloaded))
    original.write_bytes(data)
    store.note(source.downloaded, sha256_of(original, lambda done, total: None))
    store.make_room_for(store.beside(source.path, "rewriting")).write_bytes(b"half")
    assert store.state(source) == "partial"
    puller.pull(source)
    assert hub.served == []
    assert puller.names() == ["org/model/m.text-encoders.gguf"]


def split(hub: HubServer, folder: Path) -> tuple[Source, bytes]:
    """A model in three parts on the hub, and what the second of them holds."""
    write_llamabox_model(folder / "m.gguf")
    (folder / "parts").mkdir()
    parts = split_gguf(folder / "m.gguf", folder / "parts", 2)
    fields = [hub.add("org/model", part.name, part.read_bytes()) for part in parts]
    shared = {"repo": "org/model", "file": parts[0].name, "bytes": sum(each["bytes"] for each in fields)}
    stated = [{key: each[key] for key in ("file", "bytes", "sha256")} for each in fields]
    return Source.model_validate({**shared, "parts": stated}), parts[1].read_bytes()


def test_a_split_model_is_joined(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """One file of one progress comes of its parts, which are gone; it is ready, and known if that changes."""
    source, _ = split(hub, tmp_path)
    assert len(source.parts) == 3
    puller.pull(source)
    name = "org/model/m.joined.gguf"
    assert puller.names() == [name]
    whole, joined = (read_header(path) for path in (tmp_path / "m.gguf", puller.store.path(source.path)))
    assert [(t.name, t.shape, t.type) for t in joined.tensors.values()] == [
        (t.name, t.shape, t.type) for t in whole.tensors.values()
    ]
    assert puller.events[0] == Planned(((name, source.bytes or 0),), 0, source.bytes or 0)
    assert {event.file for event in puller.events[1:] if not isinstance(event, Planned)} == {name}
    done = [event.done for event in puller.events if isinstance(event, Downloading)]
    assert done == sorted(done)
    assert done[-1] == source.bytes
    assert puller.store.state(source) == "ready"
    assert puller.store.verify(source, lambda done, total: None).state == "ready"
    asked = len(hub.served)
    puller.pull(source)
    assert len(hub.served) == asked
    other = source.model_copy(
        update={"parts": (*source.parts[:2], source.parts[2].model_copy(update={"sha256": "0" * 64}))}
    )
    assert puller.store.wanted(Source.model_validate(other.model_dump()))


def test_a_split_model_goes_on_where_it_broke(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """Parts that are here are not fetched again; a killed joining is done again, without the hub."""
    source, second = split(hub, tmp_path)
    hub.faults.corrupt = True
    with pytest.raises(CorruptFile):
        puller.pull(source)
    hub.faults.corrupt = False
    store, (first, *_) = puller.store, source.pieces
    path = store.make_room_for(store.path(first.downloaded))
    path.write_bytes((tmp_path / "parts" / path.name).read_bytes())
    store.note(first.downloaded, first.sha256 or "")
    assert store.state(source) == "partial"
    hub.served.clear()
    hub.faults.cut_after = len(second) // 2
    puller.pull(source)
    assert not any(first.file in one.path for one in hub.served)
    assert puller.names() == ["org/model/m.joined.gguf"]


def test_a_split_model_needs_its_size_twice(hub: HubServer, puller: Puller, tmp_path: Path) -> None:
    """Which is known before the first byte is fetched."""
    source, _ = split(hub, tmp_path)
    assert source.bytes is not None
    tight = Store(tmp_path / "models", lambda folder: (64 << 20) + 2 * (source.bytes or 0) - 1)
    with pytest.raises(DiskFull, match="are still to come"):
        puller.make(source, store=tight).run()
    assert hub.sent == 0
