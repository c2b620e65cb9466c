"""Survival of a careless start: closed streams, readers of the log that leave, odd time zones, few files."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psutil
import pytest

from tests.conftest import DEADLINE
from tests.survival import GENERATIONS, SMALL

pytestmark = pytest.mark.posix

KEY = "key-of-the-holder"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(model_dir: Path) -> Iterator[Start]:
    """Start a server by this line of a shell, in which "$@" is its command."""
    started: list[subprocess.Popen[bytes]] = []

    def run(
        line: str = 'exec "$@"', *, stderr: int | IO[bytes] | None = None, **env: str
    ) -> subprocess.Popen[bytes]:
        command = [
            sys.executable, "-m", "gguf_imagegen", "serve", "--port", "0", "--model", "tiny-random",
            "--models-dir", str(model_dir), "--threads", "1", "--grace", "1",
        ]  # fmt: skip
        process = subprocess.Popen(
            ["sh", "-c", line, "sh", *command], env={**os.environ, **env}, stderr=stderr
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def url_of(process: subprocess.Popen[bytes]) -> str:
    """Where it listens; it may have no stream to say so."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended: {process.returncode}"
        with suppress(psutil.Error):
            for connection in psutil.Process(process.pid).net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    return f"http://127.0.0.1:{connection.laddr.port}"
        time.sleep(0.02)
    raise AssertionError("it does not listen")


def draws(url: str, **headers: str) -> None:
    """It makes a picture."""
    request = urllib.request.Request(url + GENERATIONS, json.dumps(SMALL).encode(), headers)
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        assert json.load(answer)["size"] == "64x64"


def serves(process: subprocess.Popen[bytes]) -> None:
    """It makes two pictures, and ends with 0 when it is asked to."""
    url = url_of(process)
    for _ in range(2):
        draws(url)
    process.terminate()
    assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize(
    "line",
    [
        'exec "$@" >/dev/full 2>/dev/full',
        'exec "$@" >&- 2>&-',
        'exec "$@" <&- >&- 2>&-',
        'exec "$@" 2</dev/null',
    ],
)
def test_streams_that_take_nothing(start: Start, line: str) -> None:
    """A full disk, closed streams, or one that is open to read only, cost the log and nothing else."""
    serves(start(line))


def test_closed_streams_are_no_files_or_sockets(start: Start) -> None:
    """What is opened later never gets the number of a standard stream."""
    process = start('exec "$@" <&- >&- 2>&-')
    url_of(process)
    streams = {Path(f"/proc/{process.pid}/fd/{fd}").readlink() for fd in (0, 1, 2)}
    assert streams == {Path("/dev/null")}
    serves(process)


def test_a_reader_that_leaves(start: Start) -> None:
    """`serve 2>&1 | head -1`."""
    process = start(stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"gguf-imagegen serves")
    process.stderr.close()
    serves(process)


def test_a_reader_that_sleeps(start: Start) -> None:
    """A full pipe holds up nothing; when it is read again, the log says how much is missing, and goes on."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    with os.fdopen(writer, "wb") as stderr:
        process = start(stderr=stderr)
    url = url_of(process)
    draws(url)
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb") as log:
        unread = log.read()
        assert unread.strip(b"\0") == b""
        draws(url)
        lost, _, last = log.read().strip().rpartition(b"\n")
        assert re.match(rb"\[\d+ bytes that nobody read are lost\]\n", lost)
        assert b"succeeded" in last
        serves(process)


@pytest.mark.parametrize("zone", ["XYZ-25:61:77", "ABC+167"])
def test_an_odd_time_zone(start: Start, zone: str) -> None:
    """Pictures are named by the time of a zone that Python's datetime would refuse."""
    serves(start(TZ=zone))


def test_what_a_killed_server_left_is_removed(start: Start, tmp_path: Path) -> None:
    """From among the temporary files, by the next one."""
    first = start(TMPDIR=str(tmp_path))
    draws(url_of(first))
    first.kill()
    first.wait()
    left = set(tmp_path.iterdir())
    assert left, "the folder of its worker"
    second = start(TMPDIR=str(tmp_path))
    draws(url_of(second))
    assert left.isdisjoint(tmp_path.iterdir())


@pytest.fixture
def many_files() -> Iterator[None]:
    """Open files enough for the test's own ends of its connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTT", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\nx"]
)
@pytest.mark.usefixtures("many_files")
def test_silent_sockets_lock_nobody_out(start: Start, sent: bytes) -> None:
    """Where 256 files may be open, 400 connections of strangers leave room for who has the key."""
    process = start('ulimit -n 256; exec "$@"', GGUF_IMAGEGEN_API_KEY=KEY)
    url = url_of(process)
    with ExitStack() as stack:
        for _ in range(400):
            wire = stack.enter_context(
                socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), DEADLINE)
            )
            wire.sendall(sent)
        for _ in range(2):
            draws(url, Authorization=f"Bearer {KEY}")
        assert psutil.Process(process.pid).num_fds() < 256
