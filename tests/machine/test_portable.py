"""The code runs without POSIX: what only one system has stands in machine/, behind a look at the system."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_imagegen
from gguf_imagegen.machine import files, limits, locks, processes, signals
from tests.api.client import eventually
from tests.conftest import POSIX

PACKAGE = Path(gguf_imagegen.__file__).parent
FOREIGN = {
    "fcntl", "grp", "pwd", "pty", "resource", "syslog", "termios", "tty", "uvloop",
    "msvcrt", "winreg", "_winapi",
}  # fmt: skip
"""Modules that one of Linux, macOS and Windows lacks; `signal` and `select` have parts that one lacks."""
ONLY_HERE = {
    "fork", "forkpty", "getgid", "getpgid", "getuid", "geteuid", "initgroups", "killpg", "mkfifo",
    "nice", "pipe2", "posix_spawn", "sched_getaffinity", "sched_setaffinity", "setpgid", "setsid", "statvfs",
    "uname", "wait4", "waitpid", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "WNOHANG",
    "SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "PIPE_BUF", "add_signal_handler",
    "AF_UNIX", "SO_REUSEPORT", "start_new_session", "preexec_fn", "pass_fds", "WinDLL", "windll",
}  # fmt: skip
"""Attributes and arguments that one of them lacks."""
MODULES = sorted(PACKAGE.rglob("*.py"))


def of_one_system(tree: ast.AST) -> Iterator[str]:
    """What a module has of a single system, with the line."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: {each.name}" for each in names if each.name in FOREIGN)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in FOREIGN:
                yield f"{node.lineno}: {module}"
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if name in ONLY_HERE:
                yield f"{node.lineno}: {name}"


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_one_systems_names_stand_in_machine() -> None:
    """Elsewhere nobody imports or names what only one system has."""
    outside = {path: list(of_one_system(read(path))) for path in MODULES if path.parent.name != "machine"}
    assert {path.name: found for path, found in outside.items() if found} == {}


@pytest.mark.parametrize("path", sorted((PACKAGE / "machine").glob("*.py")), ids=lambda path: path.name)
def test_machine_looks_at_the_system_first(path: Path) -> None:
    """Modules and names of one system stand only where the code asks for it, or for the name."""
    text = path.read_text(encoding="utf-8")
    for each in ast.parse(text).body:
        source = ast.get_source_segment(text, each) or ""
        looks = any(word in source for word in ("sys.platform", "os.name", "hasattr(", "getattr("))
        if not looks:
            assert list(of_one_system(ast.Module([each], []))) == []
            assert "CDLL(None)" not in source, "Windows has no library of that name"


def test_texts_are_read_as_utf8() -> None:
    """Whatever code page Windows has: each file of text names its encoding."""
    found = {
        f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(read(path))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("read_text", "write_text")
        and not any(each.arg == "encoding" for each in node.keywords)
    }
    assert found == set()


def test_tests_are_found_everywhere() -> None:
    """What pytest imports to find tests has what only one system has no further out than in a function or
    behind a look at the system, unless all its tests need POSIX."""
    found = {
        f"{path.name}:{place}"
        for path in sorted((PACKAGE.parent / "tests").rglob("*.py"))
        if POSIX not in path.read_text(encoding="utf-8")
        for node in read(path).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for place in of_one_system(node)
    }
    assert found == set()


def test_tests_say_that_they_need_posix() -> None:
    """A test module that names what Windows lacks, or runs bash, has tests with the marker `posix`."""
    tests = sorted(path for path in (PACKAGE.parent / "tests").rglob("test_*.py") if path != Path(__file__))
    silent = [path for path in tests if "mark.posix" not in path.read_text(encoding="utf-8")]
    texts = {path: path.read_text(encoding="utf-8") for path in silent}
    shells = [path for path, text in texts.items() if '"bash"' in text or "shell(" in text]
    assert [*shells, *(path for path in silent if any(of_one_system(read(path))))] == []


# -- what stands in machine/ -----------------------------------------------------------------------------


@pytest.mark.posix
async def test_signals() -> None:
    """Both ways to end a server, and the one to read its files again, call what they are given."""
    heard: list[str] = []
    signals.on_stop(lambda: heard.append("stop"))
    signals.on_hangup(lambda: heard.append("hangup"))
    loop = asyncio.get_running_loop()
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        await eventually("three signals are heard", lambda: _of_size(heard, 3))
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert sorted(heard) == ["hangup", "stop", "stop"]


async def _of_size(heard: list[str], size: int) -> bool:
    return len(heard) == size


def test_open_files() -> None:
    """At least as many as there are now, which is enough for a few connections."""
    assert limits.open_files(64) >= 64


@pytest.mark.posix
def test_memory_is_bounded() -> None:
    """Checked in a process of its own, which would not get it back."""
    code = "from gguf_imagegen.machine.limits import bound_memory; bound_memory(1 << 30); bytearray(2 << 30)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "MemoryError" in ran.stderr if sys.platform == "linux" else ran.returncode == 0


@pytest.mark.posix
def test_links_are_not_written_through(tmp_path: Path) -> None:
    """A download does not follow a link that lies in its place."""
    (tmp_path / "target").write_bytes(b"kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic"):
        os.open(tmp_path / "link", files.append_flags(), 0o644)
    handle = os.open(tmp_path / "new", files.append_flags(), 0o644)
    assert stat.S_ISREG(os.fstat(handle).st_mode)
    os.close(handle)


def test_a_lock_leaves_no_file(tmp_path: Path) -> None:
    """Held once at a time, by whom it says, and gone afterwards."""
    with locks.exclusive(tmp_path / "lock"):
        with pytest.raises(locks.Held) as held, locks.exclusive(tmp_path / "lock"):
            pass
        assert held.value.holder == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "exit code 1"), (0xC0000005, "access violation"), (0xC0000409, "exit code 0xc0000409")],
)
def test_ends_are_named(code: int, words: str) -> None:
    assert processes.exit_name(code) == words
