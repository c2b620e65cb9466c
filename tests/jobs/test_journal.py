"""The journal: what was committed is read again, whatever becomes of the file, the disk or the version."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_imagegen.jobs.journal import Journal, NewerJournal, Record, Refused
from gguf_imagegen.jobs.stored import Stored, StoredEnd, StoredImage, StoredItem, StoredNotice, StoredStart
from gguf_imagegen.jobs.ticket import Repeat, Ticket
from gguf_imagegen.vocabulary.events import Timings

EVENTS: Sequence[Stored] = (
    StoredStart("cpu"),
    StoredNotice("a note"),
    StoredImage(0, 7, "a.png", 64, 64, Timings(1, 2, 3, 6, 4)),
    StoredItem(3, StoredEnd("InvalidRequest", "gone", "lora", None)),
    StoredEnd("GenerationFailed", "no", None, None),
)


def ticket(id: str, prompt: str = "a cat", caller: str = "ann") -> Ticket:
    return Ticket(
        id=id,
        caller=caller,
        dialect="v1",
        operation="generation",
        model="m",
        request={"prompt": prompt, "seed": 5},
        files={"image": []},
        plan={},
        names=["a.png"],
        lasting=False,
        repeat=Repeat("k", "b"),
        created=1.5,
    )


@asynccontextmanager
async def opened(path: Path, most_pages: int | None = None) -> AsyncIterator[Journal]:
    journal = Journal(path, most_pages)
    journal.open()
    journal.start()
    try:
        yield journal
    finally:
        await journal.close()


def read(path: Path) -> list[Record]:
    """What the next run of the server finds."""
    journal = Journal(path)
    journal.open()
    return journal.read()[0]


def test_a_new_journal_is_empty(tmp_path: Path) -> None:
    """The first life is number 1, and nobody else reads the files."""
    journal = Journal(tmp_path / "journal")
    journal.open()
    assert journal.life == 1
    assert journal.read() == ([], {})
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


async def test_what_was_committed_is_read(tmp_path: Path) -> None:
    """Tickets in their order with their events in theirs, owners, and the life that took the ticket."""
    path = tmp_path / "journal"
    for life in (1, 2):
        async with opened(path) as journal:
            assert journal.life == life
            await journal.accept(ticket(f"job{life}"))
            for number, event in enumerate(EVENTS):
                await journal.event(f"job{life}", 10 * number, 2.5, event)
            journal.own(f"{life}.png", "ann")
    journal = Journal(path)
    journal.open()
    records, owners = journal.read()
    assert [record.ticket for record in records] == [ticket("job1"), ticket("job2")]
    assert [record.life for record in records] == [1, 2]
    assert {(record.job, record.caller, record.created) for record in records} == {
        ("job1", "ann", 1.5),
        ("job2", "ann", 1.5),
    }
    for record in records:
        assert list(record.events) == [(10 * number, 2.5, event) for number, event in enumerate(EVENTS)]
    assert owners == {"1.png": "ann", "2.png": "ann"}


async def test_what_is_awaited_is_on_the_disk(tmp_path: Path) -> None:
    """A copy of the files at that moment, as a loss of power leaves them, has it."""
    path, copy = tmp_path / "journal", tmp_path / "copy"
    async with opened(path) as journal:
        await asyncio.gather(*(journal.accept(ticket(f"job{number}")) for number in range(50)))
        for end in ("", "-wal"):
            copy.with_name(copy.name + end).write_bytes(path.with_name(path.name + end).read_bytes())
    assert len(read(copy)) == 50


async def test_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    """With its events; and the file shrinks when most of it is free."""
    path = tmp_path / "journal"
    async with opened(path) as journal:
        jobs = [f"job{number}" for number in range(3)]
        await asyncio.gather(*(journal.accept(ticket(job, "x" * 3_000_000)) for job in jobs))
        await journal.event("job0", 1, 1.0, StoredStart())
        for job in jobs[:2]:
            journal.forget(job)
        journal.own("a.png", "ann")
        journal.disown("a.png")
    large = path.stat().st_size
    assert [record.job for record in read(path)] == ["job2"]
    assert path.stat().st_size < large / 2
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM events").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM owners").fetchone() == (0,)


async def test_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No ticket is taken that is not stored, nobody waits for ever, events follow when there is room."""
    path = tmp_path / "journal"
    async with opened(path, most_pages=40) as journal:
        await journal.accept(ticket("first", "x" * 90_000))
        await journal.accept(ticket("second"))
        for _ in range(2):
            tries = [journal.accept(ticket(f"more{number}", "x" * 90_000)) for number in range(3)]
            found = await asyncio.gather(*tries, return_exceptions=True)
            assert [type(each) for each in found] == [Refused] * 3
            assert "full" in str(found[0])
        noted = journal.event("second", 1, 1.0, StoredNotice("y" * 90_000))
        with pytest.raises(Refused):
            await noted
        journal.forget("first")
        await journal.accept(ticket("third"))
    assert caplog.text.count("cannot write to the journal") == 1
    records = read(path)
    assert [record.job for record in records] == ["second", "third"]
    assert records[0].events[0][2] == StoredNotice("y" * 90_000)


async def test_a_newer_journal_is_left_alone(tmp_path: Path) -> None:
    """Its words say what to do."""
    path = tmp_path / "journal"
    async with opened(path) as journal:
        await journal.accept(ticket("job"))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    before = path.read_bytes()
    with pytest.raises(NewerJournal, match=r"a newer version of this program.* --state-dir"):
        Journal(path).open()
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", [0, 4096, 3 * 4096])
async def test_a_damaged_journal_is_set_aside(
    tmp_path: Path, where: int, caplog: pytest.LogCaptureFixture
) -> None:
    """All that was in it is kept under another name, which the log says, and a new one is begun."""
    path = tmp_path / "journal"
    async with opened(path) as journal:
        for number in range(50):
            await journal.accept(ticket(f"job{number}"))
    damaged = bytearray(path.read_bytes())
    damaged[where : where + 4096] = b"\x5a" * 4096
    path.write_bytes(damaged)
    assert read(path) == []
    (aside,) = [each for each in tmp_path.iterdir() if ".damaged-" in each.name]
    assert aside.read_bytes() == damaged
    assert "the journal is damaged" in caplog.text
    assert aside.name in caplog.text
    async with opened(path) as journal:
        await journal.accept(ticket("new"))
    assert [record.job for record in read(path)] == ["new"]


async def test_a_row_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A job stays known without its ticket, and without an event that means nothing."""
    path = tmp_path / "journal"
    async with opened(path) as journal:
        await journal.accept(ticket("job"))
        await journal.event("job", 1, 1.0, StoredStart())
        await journal.event("job", 2, 2.0, StoredEnd())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("""UPDATE tickets SET ticket = '{"id": 5}'""")
        db.execute("""UPDATE events SET event = '{"type": "danced"}' WHERE id = 1""")
    (record,) = read(path)
    assert record == Record("job", "ann", 1.5, 0, 1, None, [(2, 2.0, StoredEnd())])
    assert "the ticket of job job cannot be read" in caplog.text
    assert "an event of job job cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """An OSError with words; nothing is set aside."""
    with pytest.raises(OSError, match=r"."):
        Journal(tmp_path / "missing" / "journal").open()
    assert list(tmp_path.iterdir()) == []


DEEDS = st.lists(
    st.tuples(st.sampled_from(["accept", "event", "forget", "reopen"]), st.integers(0, 4)), max_size=30
)


@settings(max_examples=15)
@given(deeds=DEEDS)
def test_it_agrees_with_a_dict(
    tmp_path_factory: pytest.TempPathFactory, deeds: list[tuple[str, int]]
) -> None:
    """Whatever the order of deeds, and of ends of the server between them."""
    asyncio.run(_agrees(tmp_path_factory.mktemp("journal") / "journal", deeds))


async def _agrees(path: Path, deeds: list[tuple[str, int]]) -> None:
    expected: dict[str, list[int]] = {}
    journal = Journal(path)
    journal.open()
    journal.start()
    for number, (deed, which) in enumerate(deeds):
        job = f"job{which}"
        if deed == "accept" and job not in expected:
            expected[job] = []
            await journal.accept(ticket(job))
        elif deed == "event" and job in expected:
            expected[job].append(number)
            await journal.event(job, number, 1.0, StoredStart())
        elif deed == "forget":
            expected.pop(job, None)
            journal.forget(job)
        elif deed == "reopen":
            await journal.close()
            journal = Journal(path)
            journal.open()
            journal.start()
    await journal.close()
    assert {record.job: [id for id, _, _ in record.events] for record in read(path)} == expected


async def test_ids_of_forgotten_jobs_are_bounded(tmp_path: Path) -> None:
    """The latest stay known, with their callers, for their time."""
    async with opened(tmp_path / "journal") as journal:
        for number in range(3):
            await journal.accept(ticket(f"job_{number}", caller=f"c{number}"))
            journal.forget(f"job_{number}")
        journal.forget("job_never")
    journal = Journal(tmp_path / "journal")
    journal.open()
    assert journal.forgotten() == {f"job_{number}": f"c{number}" for number in range(3)}
    assert journal.read()[0] == []
    with closing(sqlite3.connect(tmp_path / "journal")) as db, db:
        db.execute("UPDATE forgotten SET number = number + 20000 WHERE job = 'job_2'")
        db.execute("UPDATE forgotten SET at = 0 WHERE job = 'job_1'")
    async with opened(tmp_path / "journal") as journal:
        assert journal.forgotten().keys() == {"job_0", "job_2"}
        await journal.accept(ticket("job_3"))
        journal.forget("job_3")
    assert Journal(tmp_path / "journal").forgotten().keys() == {"job_2", "job_3"}
