"""Connections that say nothing, too much, or what is no HTTP; and floods of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import resource
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from gguf_imagegen.api.connections import MOST, Bounds, bounds_here
from tests.api.client import GENERATIONS, SMALL
from tests.conftest import DEADLINE, App, RunningApp
from tests.fake_engines import NeverAnswers, QuickEngine

pytestmark = pytest.mark.posix

KEY = "key-of-the-holder"
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
STREAM = json.dumps({**SMALL, "stream": True}).encode()
POST = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (
    GENERATIONS.encode(),
    len(STREAM),
)
POST += STREAM


class Wire:
    """A client that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self._writer.write_eof()

    async def answer(self) -> bytes:
        """The head of an answer, and its body as far as it has a length."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), DEADLINE)
        length = next(
            (int(x.split(b":")[1]) for x in head.split(b"\r\n") if x.startswith(b"Content-Length")), 0
        )
        return head + await asyncio.wait_for(self._reader.readexactly(length), DEADLINE)

    async def rest(self) -> bytes:
        """All that comes until the server closes."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self._reader.read(), DEADLINE)
        return b""

    @property
    def open(self) -> bool:
        return not (self._reader.at_eof() or self._reader.exception())


@contextlib.asynccontextmanager
async def wires(app: App, count: int = 1, *, of: str = "127.0.0.1") -> AsyncIterator[list[Wire]]:
    """Connections `of` this address."""
    address = urlsplit(app.url)
    async with contextlib.AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(address.hostname, address.port, local_addr=(of, 0))
            stack.callback(writer.close)
            made.append(Wire(reader, writer))
        yield made


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\nHost: loc"])
@pytest.mark.parametrize("before", [0, 1])
async def test_a_head_has_its_time(running: RunningApp, sent: bytes, before: int) -> None:
    """Who does not finish the head of a request is closed, the first time and later; who did is not."""
    bounds = Bounds(head_seconds=1.0, idle_seconds=3.0)
    async with running(engine=NeverAnswers, bounds=bounds) as app, wires(app, 2) as (waits, slow):
        waits.send(POST)
        assert b" 200 " in await waits.answer()
        for _ in range(before):
            slow.send(LIVEZ)
            assert b" 200 " in await slow.answer()
        slow.send(sent)
        assert await slow.rest() == b""
        assert waits.open


async def test_a_head_has_its_size(running: RunningApp) -> None:
    """A head that never ends is cut off, however short its lines are."""
    async with running(engine=QuickEngine, bounds=Bounds(head_bytes=20_000)) as app, wires(app) as (wire,):
        wire.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(40):
            wire.send(b"X-%d: %s\r\n" % (number, b"y" * 1000))
        assert await wire.rest() == b""


async def test_the_silent_make_room(running: RunningApp) -> None:
    """At the bound those go that were silent for longest, and none that waits for a picture."""
    async with running(engine=NeverAnswers, bounds=Bounds(most=8)) as app, wires(app) as (waits,):
        waits.send(POST)
        assert b" 200 " in await waits.answer()
        async with wires(app, 20) as silent, wires(app) as (late,):
            late.send(LIVEZ)
            assert b" 200 " in await late.answer()
            for wire in silent[:13]:
                assert await wire.rest() == b""
            silent[-1].send(LIVEZ)
            assert b" 200 " in await silent[-1].answer()
            assert waits.open


async def test_a_trusted_proxy_is_not_one_client(running: RunningApp) -> None:
    """Its idle connections count for those who were served last; the flood of another makes room."""
    async with (
        running(engine=QuickEngine, bounds=Bounds(most=5), trusted_proxies="127.0.0.1") as app,
        wires(app, 3) as pool,
    ):
        for number, wire in enumerate(pool):
            client = b"\r\nX-Forwarded-For: 10.0.0.%d\r\n\r\n" % number
            wire.send(LIVEZ.replace(b"\r\n\r\n", client))
            assert b" 200 " in await wire.answer()
        async with wires(app, 3, of="127.0.0.2") as flood:
            flood[2].send(LIVEZ)
            await flood[2].answer()
            for wire in pool:
                wire.send(LIVEZ)
                assert b" 200 " in await wire.answer()
            assert await flood[0].rest() == b""


async def test_when_all_are_at_work_the_new_one_is_closed(running: RunningApp) -> None:
    """A stream is never ended for somebody else's request."""
    async with running(engine=NeverAnswers, bounds=Bounds(most=3)) as app, wires(app, 3) as streams:
        for wire in streams:
            wire.send(POST)
            assert b" 200 " in await wire.answer()
        async with wires(app) as (late,):
            late.send(LIVEZ)
            assert await late.rest() == b""
        assert all(wire.open for wire in streams)


# -- what is no HTTP ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nAuthorization: Bearer " + KEY.encode() + b"y" * 9000 + b"\r\n\r\n",
        b"GET /" + KEY.encode() + b"y" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n" + KEY.encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + KEY.encode() + b"\0\r\n\r\n",
        KEY.encode() + b" / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + KEY.encode() + b"\r\n\r\n",
        b"GET / HTTP/9.9" + KEY.encode() + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + KEY.encode() + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_one_line(
    running: RunningApp, caplog: pytest.LogCaptureFixture, head: bytes
) -> None:
    """The log says that and from where, without a word of it; the answer is an error like any other."""
    caplog.set_level(logging.DEBUG)
    async with running(engine=QuickEngine) as app, wires(app) as (wire,):
        wire.send(head)
        answer = await wire.rest()
    status, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in status
    assert b"Server: gguf-imagegen\r\n" in status
    assert json.loads(body)["error"]["code"] == "invalid_request"
    assert KEY.encode() not in answer
    (line,) = [record for record in caplog.records if "malformed" in record.getMessage()]
    assert line.exc_info is None
    assert line.levelname == "INFO"
    assert "127.0.0.1" in line.getMessage()
    assert KEY not in caplog.text
    assert "Traceback" not in caplog.text


# -- floods -------------------------------------------------------------------------------------------


def test_bounds_leave_files_for_the_rest() -> None:
    """The soft limit of open files is raised as far as it is of use; some of it is not for connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        most = bounds_here().most
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most + 64, before[1])
        assert most == min(MOST, before[1] - 64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("hosts", [("localhost", "evil.example"), ("evil.example", "localhost"), ()])
async def test_a_request_has_one_host(running: RunningApp, hosts: tuple[str, ...]) -> None:
    """Neither of two names counts, whichever is ours, and none is no name of ours."""
    async with running(engine=QuickEngine) as app, wires(app) as (wire,):
        lines = "".join(f"Host: {host}\r\n" for host in hosts)
        wire.send(f"GET /v1/models HTTP/1.1\r\n{lines}\r\n".encode())
        assert (await wire.answer())[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.0 400")


@pytest.mark.parametrize("ends", ["leaves", "half-closes"])
@pytest.mark.parametrize(
    "sent",
    [
        b"Content-Length: 400\r\n\r\n{",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\n{",
        b"Expect: 100-continue\r\nContent-Length: 400\r\n\r\n{",
    ],
)
async def test_a_body_that_breaks_off_is_no_defect(
    running: RunningApp, caplog: pytest.LogCaptureFixture, sent: bytes, ends: str
) -> None:
    """A client that leaves in the middle is told of in no traceback."""
    async with running(engine=QuickEngine) as app:
        async with wires(app) as (wire,):
            wire.send(f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\n".encode() + sent)
            if ends == "half-closes":
                wire.end()
                await wire.rest()
        async with wires(app) as (other,):
            other.send(LIVEZ)
            assert b" 200 " in await other.answer()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_what_follows_an_answer_is_no_defect(
    running: RunningApp, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of a refused body is read on; that it is malformed is nobody's fault here."""
    async with running(engine=QuickEngine, api_key=KEY) as app, wires(app) as (wire,):
        wire.send(b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b" 401 " in await wire.answer()
        wire.send(b"no size of a chunk\r\n")
        await wire.rest()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
