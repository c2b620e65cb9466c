"""Tickets, and the events that change their state, in SQLite: what a server knows after it was killed.

One thread writes. What arrives while it commits is committed together, so a commit that takes milliseconds
costs little when many are in flight.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import msgspec

from gguf_imagegen.jobs.letter import Letter
from gguf_imagegen.jobs.stored import Stored
from gguf_imagegen.jobs.ticket import Ticket

log = logging.getLogger(__name__)

VERSION: Final = 1
AGAIN = 5.0
"""Seconds after which what the disk refused is tried again."""
MOST_TOGETHER = 500
BUSY = 10.0
"""Seconds to wait for another program that reads the file."""
LOOSE = 1000
"""Free pages (of 4 KiB) that may be left in the file, as long as they are not most of it."""
SCHEMA = """
CREATE TABLE server (life INTEGER NOT NULL);
INSERT INTO server VALUES (0);
CREATE TABLE tickets (
    number INTEGER PRIMARY KEY, job TEXT NOT NULL UNIQUE, parent TEXT, priority INTEGER NOT NULL DEFAULT 0,
    caller TEXT NOT NULL, created REAL NOT NULL, life INTEGER NOT NULL, ticket BLOB NOT NULL
);
CREATE TABLE events (
    job TEXT NOT NULL, id INTEGER NOT NULL, at REAL NOT NULL, event BLOB NOT NULL, PRIMARY KEY (job, id)
) WITHOUT ROWID;
CREATE TABLE owners (picture TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
"""

LETTERS = "CREATE TABLE IF NOT EXISTS letters (job TEXT PRIMARY KEY, letter BLOB NOT NULL) WITHOUT ROWID"
"""An older version of the program leaves it alone."""

FORGOTTEN = """CREATE TABLE IF NOT EXISTS forgotten (
    number INTEGER PRIMARY KEY, job TEXT NOT NULL, caller TEXT NOT NULL, at REAL NOT NULL)"""
"""Likewise."""
MOST_FORGOTTEN = 10_000
LONGEST_FORGOTTEN = 30 * 86400.0
"""How many jobs that are past their time are known by their ids, and for how many seconds."""

_TICKET: Final = msgspec.json.Decoder(Ticket)
_EVENT: Final = msgspec.json.Decoder[Stored](Stored)
_LETTER: Final = msgspec.json.Decoder(Letter)


class NewerJournal(Exception):
    """The journal was written by a newer version of this program, and is left alone."""


class Refused(Exception):
    """The disk did not take it; the message is SQLite's."""


@dataclass(frozen=True)
class Record:
    """What the journal has of one job; `ticket` is None if it cannot be read. `life` took the ticket."""

    job: str
    caller: str
    created: float
    priority: int
    life: int
    ticket: Ticket | None
    events: Sequence[tuple[int, float, Stored]]
    """Id, time and event."""


@dataclass(frozen=True)
class _Write:
    """Statements with their values, and who waits for their commit; to be done `again` until they are."""

    statements: Sequence[tuple[str, Sequence[Any]]]
    done: asyncio.Future[None] | None = None
    again: bool = True


class Journal:
    """Of one server. `life` is how often the server was started with it, from 1.

    `most_pages` bounds the file, for tests of a full disk.
    """

    def __init__(self, path: Path, most_pages: int | None = None) -> None:
        self.life = 0
        self._path = path
        self._most_pages = most_pages
        self._writes: SimpleQueue[_Write | None] = SimpleQueue()
        self._refused: list[_Write] = []
        self._failing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._db: sqlite3.Connection | None = None  # the thread's own
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)

    def open(self) -> None:
        """Begin a life. A damaged file is set aside, and a new one begun.

        Raises NewerJournal, and OSError if the file cannot be written.
        """
        try:
            self.life = self._begin()
        except sqlite3.DatabaseError as exc:
            if isinstance(exc, sqlite3.OperationalError):  # a full or read-only disk is no damage
                raise OSError(None, f"the journal: {exc}") from exc
            self._set_aside(exc)
            self.life = self._begin()

    def read(self) -> tuple[list[Record], dict[str, str]]:
        """All jobs, the oldest first, and the owners of pictures. Call it in a thread, before `start`."""
        try:
            with closing(self._opened()) as db:
                rows = db.execute(
                    "SELECT job, caller, created, priority, life, ticket FROM tickets ORDER BY number"
                )
                found = [
                    Record(job, caller, created, priority, life, _ticket(job, ticket), _events(db, job))
                    for job, caller, created, priority, life, ticket in rows
                ]
                return found, dict(db.execute("SELECT picture, owner FROM owners"))
        except sqlite3.DatabaseError as exc:  # as `open` may not have seen it
            self._set_aside(exc)
            self.life = self._begin()
            return [], {}

    def letters(self) -> list[Letter]:
        """Those that have not arrived. Call it in a thread, after `read` and before `start`."""
        found = []
        with closing(self._opened()) as db:
            for job, row in db.execute("SELECT job, letter FROM letters"):
                try:
                    found.append(_LETTER.decode(row))
                except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as exc:
                    log.error("the webhook of job %s cannot be read: %s", job, exc)
        return found

    def forgotten(self) -> dict[str, str]:
        """The callers of jobs that are past their time, by id. Call it as `letters`."""
        with closing(self._opened()) as db:
            return dict(db.execute("SELECT job, caller FROM forgotten"))

    def start(self) -> None:
        """From now on things can be written."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """When this returns all that was given is written, as far as the disk takes it."""
        if self._loop is not None:
            self._writes.put(None)
            await asyncio.to_thread(self._thread.join, 2 * BUSY)

    # -- what is written ------------------------------------------------------------------------------

    def accept(self, ticket: Ticket) -> asyncio.Future[None]:
        """Done when the ticket is on the disk, or `Refused`."""
        sql = """INSERT INTO tickets (job, parent, caller, created, priority, life, ticket)
            VALUES (?, ?, ?, ?, ?, ?, ?)"""
        row = msgspec.json.encode(ticket)
        values = (
            ticket.id, ticket.parent, ticket.caller, ticket.created, ticket.priority, self.life, row
        )  # fmt: skip
        return self._commit((sql, values), again=False)

    def event(
        self, job_id: str, id: int, at: float, event: Stored, letter: Letter | None = None
    ) -> asyncio.Future[None]:
        """Done when the event is on the disk, and with it the letter about it.

        If the disk has `Refused` them, they are tried again later.
        """
        rows = [_event_row(job_id, id, at, event), *([_letter_row(letter)] if letter else [])]
        return self._commit(*rows)

    def note(self, job_id: str, id: int, at: float, event: Stored) -> None:
        """Store an event that nobody waits for."""
        self._later(_event_row(job_id, id, at, event))

    def move(self, job_id: str, priority: int, since: float) -> None:
        """A job that waits is to go sooner or later: `created` is its age in the queue, not its ticket's."""
        sql = "UPDATE tickets SET priority = ?, created = ? WHERE job = ?"
        self._later((sql, (priority, since, job_id)))

    def own(self, picture: str, owner: str) -> None:
        """Keep in mind whose a picture is, even when its job is forgotten."""
        self._later(("INSERT OR REPLACE INTO owners VALUES (?, ?)", (picture, owner)))

    def disown(self, picture: str) -> None:
        """A picture is gone."""
        self._later(("DELETE FROM owners WHERE picture = ?", (picture,)))

    def keep(self, letter: Letter) -> None:
        """It was tried, and will be again."""
        self._later(_letter_row(letter))

    def discard(self, job_id: str) -> None:
        """The letter about this job has arrived, or never will."""
        self._later(("DELETE FROM letters WHERE job = ?", (job_id,)))

    def forget(self, job_id: str) -> None:
        """A job is past its time; its id stays known, as one of the latest."""
        self._later(
            ("INSERT INTO forgotten (job, caller, at) SELECT job, caller, ? FROM tickets WHERE job = ?",
             (time.time(), job_id)),
            ("DELETE FROM forgotten WHERE number <= (SELECT MAX(number) FROM forgotten) - ?",
             (MOST_FORGOTTEN,)),
            *((f"DELETE FROM {table} WHERE job = ?", (job_id,)) for table in ("events", "tickets")),
        )  # fmt: skip

    def _commit(self, *statements: tuple[str, Sequence[Any]], again: bool = True) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        self._writes.put(_Write(statements, done, again))
        return done

    def _later(self, *statements: tuple[str, Sequence[Any]]) -> None:
        self._writes.put(_Write(statements))

    # -- the thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        """Commit what has come, until None comes."""
        going = True
        while going:
            going, came = self._next()
            results = self._results([*self._refused, *came])
            self._note([error for _, error in results])
            self._tell([(each.done, error) for each, error in results if each.done is not None])
            self._refused = [replace(each, done=None) for each, error in results if error and each.again]
        if self._db is not None:
            self._db.close()

    def _next(self) -> tuple[bool, list[_Write]]:
        """What has come, at least one write unless refused ones are due; False if it was the last."""
        found: list[_Write] = []
        with suppress(Empty):
            write = self._writes.get(timeout=AGAIN if self._refused else None)
            while write is not None:
                found.append(write)
                if len(found) == MOST_TOGETHER:
                    return True, found
                write = self._writes.get_nowait()
            return False, found
        return True, found

    def _results(self, writes: Sequence[_Write]) -> list[tuple[_Write, Exception | None]]:
        """Commit all together; if that cannot be, each alone, for one may make room. What went wrong."""
        if not writes or self._written(writes) is None:
            return [(each, None) for each in writes]
        return [(each, self._written([each])) for each in writes]

    def _written(self, writes: Sequence[_Write]) -> Exception | None:
        """Commit all or nothing; what went wrong."""
        try:
            self._db = self._db or self._opened()
            self._db.execute("BEGIN IMMEDIATE")
            for write in writes:
                for sql, values in write.statements:
                    self._db.execute(sql, values)
            self._db.execute("COMMIT")
        except Exception as exc:  # the thread must live, or all who wait would wait for ever
            with suppress(sqlite3.Error):
                if self._db is not None and self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            return exc
        return None

    def _note(self, errors: Sequence[Exception | None]) -> None:
        """Log when writing begins to fail, and when it works again."""
        found = next((error for error in errors if error), None)
        if found and not self._failing:
            log.error("cannot write to the journal (%s): refusing jobs until it can be written", found)
        elif errors and not found and self._failing:
            log.info("the journal can be written again")
        self._failing = bool(found) if errors else self._failing

    def _tell(self, results: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
        if results and self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed already, nobody waits
                self._loop.call_soon_threadsafe(_resolve, results)

    # -- the file -------------------------------------------------------------------------------------

    def _begin(self) -> int:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))  # its further files get these rights
        with closing(self._opened()) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise NewerJournal(
                    "the state folder was used by a newer version of this program, which this one cannot"
                    " read; update this one, or give it another --state-dir"
                )
            (words,) = db.execute("PRAGMA quick_check(1)").fetchone()
            if words != "ok":
                raise sqlite3.DatabaseError(words)
            if version == 0:
                db.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            db.execute(LETTERS)
            db.execute(FORGOTTEN)
            db.execute("DELETE FROM forgotten WHERE at < ?", (time.time() - LONGEST_FORGOTTEN,))
            _tighten(db)
            db.execute("UPDATE server SET life = life + 1")
            (life,) = db.execute("SELECT life FROM server").fetchone()
            return int(life)

    def _set_aside(self, why: Exception) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged-{int(time.time())}")
        log.error("the journal is damaged (%s); it was moved to %s, and a new one started", why, aside.name)
        for end in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + end).rename(aside.with_name(aside.name + end))

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=BUSY, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute(f"PRAGMA journal_size_limit = {4 << 20}")
            if self._most_pages is not None:
                db.execute(f"PRAGMA max_page_count = {self._most_pages}")
        except sqlite3.Error:
            db.close()
            raise
        return db


def _tighten(db: sqlite3.Connection) -> None:
    """Give back the room of what was forgotten, where that is most of the file."""
    (free,), (pages,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("freelist_count", "page_count"))
    if free > LOOSE and free > pages // 2:
        with suppress(sqlite3.OperationalError):  # it takes room to make room
            db.execute("VACUUM")


def _event_row(job_id: str, id: int, at: float, event: Stored) -> tuple[str, Sequence[Any]]:
    """Of a job that is known: what was refused may come when the job is forgotten."""
    sql = """INSERT OR IGNORE INTO events (job, id, at, event)
        SELECT job, ?, ?, ? FROM tickets WHERE job = ?"""
    return sql, (id, at, msgspec.json.encode(event), job_id)


def _letter_row(letter: Letter) -> tuple[str, Sequence[Any]]:
    return "INSERT OR REPLACE INTO letters VALUES (?, ?)", (letter.job, msgspec.json.encode(letter))


def _ticket(job: str, row: bytes) -> Ticket | None:
    try:
        return _TICKET.decode(row)
    except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as exc:
        log.error("the ticket of job %s cannot be read: %s", job, exc)
        return None


def _events(db: sqlite3.Connection, job: str) -> list[tuple[int, float, Stored]]:
    found = []
    for id, at, event in db.execute("SELECT id, at, event FROM events WHERE job = ? ORDER BY id", (job,)):
        try:
            found.append((id, at, _EVENT.decode(event)))
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as exc:
            log.error("an event of job %s cannot be read: %s", job, exc)
    return found


def _resolve(results: Sequence[tuple[asyncio.Future[None], Exception | None]]) -> None:
    for done, error in results:
        if done.done():
            continue
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(Refused(str(error)))
