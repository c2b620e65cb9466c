"""The engine as the server sees it: a worker process that is started, listened to, and killed.

Killing is how a generation is cancelled, on every backend: the native library has no other way.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import takewhile
from pathlib import Path
from typing import Final

import psutil

import gguf_imagegen
from gguf_imagegen.engines import wire
from gguf_imagegen.engines.sdcpp.phases import bare_names
from gguf_imagegen.machine import scratch
from gguf_imagegen.machine.devices import Device
from gguf_imagegen.machine.kernels import with_kernels
from gguf_imagegen.machine.processes import PYTHON, apart, exit_name, of_python, was_killed
from gguf_imagegen.vocabulary.engine import Generate, Kernels, LoadSpec, Task
from gguf_imagegen.vocabulary.errors import (
    ConversionFailed,
    GenerationFailed,
    ImagegenError,
    InsufficientMemory,
    InvalidImage,
    ModelLoadFailed,
    ReadingFailed,
    WorkerCrashed,
    WorkerKilled,
)
from gguf_imagegen.vocabulary.events import Done, EngineEvent, Failed, Loaded

WORKER: Final = (PYTHON, "-m", "gguf_imagegen.engines.sdcpp.worker")
LOG_LINES: Final = 200
LINE_LIMIT: Final = 4000
PIPE_BUFFER: Final = 1 << 20
EVENTS_AHEAD: Final = 64
EXIT_TIMEOUT: Final = 5.0
SECRETS: Final = ("API_KEY", "TOKEN", "SECRET", "PASSWORD")
HUGE_PAGES: Final = "glibc.malloc.hugetlb=1"
"""madvise(MADV_HUGEPAGE) on what malloc maps: weights and compute buffers (glibc 2.35, `man 7 ld.so`)."""
WAITING: Final = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""How OpenMP's threads wait for each other; the first is the standard's, the others are GCC's and LLVM's."""
COMMAND: Final = "COMMAND: "
CAUSES: Final = (wire.CRASH, "terminate called", "  what():", wire.ERROR)  # best first


class EngineProcess:
    """Implements `vocabulary.engine.Engine`: one worker, one command at a time.

    The first load starts it, or a task that needs no loaded model. A worker that neither tells anything nor
    uses the CPU for `stall_timeout` seconds is killed. `device` is what it computes on, None leaves that to
    the engine. `kernels` are for a task that comes before any model, which says itself.
    Whoever leaves an iterator before its end must `close()`: the worker goes on computing.
    """

    def __init__(
        self,
        *,
        stall_timeout: float = 600.0,
        command: Sequence[str] = WORKER,
        device: Device | None = None,
        kernels: Kernels = "auto",
    ) -> None:
        self.last_crash: str | None = None
        self._device = device or Device()
        self._kernels: Kernels = kernels
        self._stall_timeout = stall_timeout
        self._command = tuple(command)
        self._process: Process | None = None
        self._scratch = ExitStack()
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue(EVENTS_AHEAD)
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[None] | None = None
        self._busy = False

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None and self._closing is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def log(self) -> list[str]:
        """The last lines of the worker's stderr, without local paths."""
        return list(self._log)

    def load(self, spec: LoadSpec) -> AsyncIterator[EngineEvent]:
        """See `vocabulary.engine.Engine`."""
        return self._run(spec)

    def run(self, task: Task) -> AsyncIterator[EngineEvent]:
        """See `vocabulary.engine.Engine`."""
        return self._run(task)

    async def close(self) -> None:
        """See `vocabulary.engine.Engine`. Takes milliseconds; the worker has nothing to save."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _start(self, *, huge_pages: bool, kernels: Kernels) -> None:
        folder = self._scratch.enter_context(scratch.folder("worker"))
        environment = worker_environment(os.environ, huge_pages=huge_pages, kernels=kernels)
        environment[wire.SCRATCH] = str(folder)
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            limit=PIPE_BUFFER,
            **apart(),
            env=self._device.applied(environment),
        )
        self._tasks = [
            asyncio.create_task(self._read_events(self._process)),
            asyncio.create_task(self._read_log(self._process)),
        ]
        if self._closing is not None:  # closed while it was being started, perhaps too early to end this
            await self._closing
            await self._close()

    async def _run(self, command: wire.Command) -> AsyncIterator[EngineEvent]:
        """The events of one command; `Done` ends it and is not passed on."""
        if self._busy:
            raise RuntimeError("the engine runs one command at a time")
        frame = wire.encode(command)
        self._busy = True
        if self._process is None and not isinstance(command, Generate):
            match command:
                case LoadSpec(huge_pages=huge_pages, kernels=kernels):
                    await self._start(huge_pages=huge_pages, kernels=kernels)
                case _:
                    await self._start(huge_pages=False, kernels=self._kernels)
        elif not self.alive:
            raise WorkerCrashed("The engine is not running.")
        self._log.append(f"{COMMAND}{type(command).__name__}")
        await self._send(frame)
        while True:
            match await self._next_event():
                case Failed() as failed:
                    self._busy = False
                    raise _error(failed)
                case Done():
                    self._busy = False
                    return
                case Loaded() as loaded:
                    self._busy = False
                    yield loaded
                    return
                case event:
                    yield event

    async def _send(self, frame: bytes) -> None:
        """The worker reads while it computes, so this ends; if it died or was closed, `_next_event` tells."""
        assert self._process is not None
        assert self._process.stdin is not None
        if self._process.stdin.is_closing():  # closed while it was being started: uvloop takes no write
            return
        with suppress(ConnectionError, asyncio.TimeoutError):
            self._process.stdin.write(frame)
            await asyncio.wait_for(self._process.stdin.drain(), self._stall_timeout)

    async def _next_event(self) -> EngineEvent:
        life = self._cpu_seconds()
        # not by `wait_for`: before Python 3.12 it goes on where it is cancelled just as the event comes
        coming = asyncio.ensure_future(self._events.get())
        try:
            while not (await asyncio.wait((coming,), timeout=self._stall_timeout))[0]:
                life, before = self._cpu_seconds(), life
                if life == before:
                    raise await self._crashed(f"no sign of life for {self._stall_timeout:g} s")
        finally:
            coming.cancel()
        event = coming.result()
        if event is None and self._closing is not None:
            raise WorkerCrashed("The engine was closed.")
        if event is None:
            raise await self._crashed(None)
        return event

    def _cpu_seconds(self) -> float:
        with suppress(psutil.Error):
            times = psutil.Process(self.pid).cpu_times()
            return times.user + times.system
        return 0.0

    async def _crashed(self, reason: str | None) -> WorkerCrashed:
        """Wait for the end of the worker and find out what it died of."""
        process, killed = self._process, False
        assert process is not None
        if reason is None:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), EXIT_TIMEOUT)
            await asyncio.wait(self._tasks, timeout=EXIT_TIMEOUT)
            code = process.returncode
            killed = code is not None and was_killed(code)
            reason = "it closed its output" if code is None else exit_name(code)
        if cause := _cause(self._log):
            reason = f"{reason}: {cause}"
        self.last_crash = reason
        await self.close()
        kind = WorkerKilled if killed else WorkerCrashed
        return kind(f"The engine stopped unexpectedly ({reason}).")

    async def _close(self) -> None:
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end_events()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_drain(process), EXIT_TIMEOUT)
        self._scratch.close()

    def _end_events(self) -> None:
        """Whoever still waits for an event must not wait for ever."""
        while not self._events.empty():
            self._events.get_nowait()
        self._events.put_nowait(None)

    async def _read_events(self, process: Process) -> None:
        """Frames from the worker into the queue, then None; a full queue holds up the worker's writer."""
        assert process.stdout is not None
        try:
            while True:
                length = wire.decode_prefix(await process.stdout.readexactly(wire.PREFIX.size))
                await self._events.put(wire.decode(await process.stdout.readexactly(length)))
        except asyncio.IncompleteReadError:
            pass
        except wire.FrameError as exc:
            self._log.append(f"{wire.CRASH}unreadable event: {exc}")
            process.kill()
        await self._events.put(None)

    async def _read_log(self, process: Process) -> None:
        assert process.stderr is not None
        rest = b""
        while chunk := await process.stderr.read(1 << 16):
            *lines, rest = (rest + chunk).split(b"\n")
            self._log.extend(_log_line(line) for line in lines)
            rest = rest[-LINE_LIMIT:]
        if rest:
            self._log.append(_log_line(rest))


def worker_environment(
    environment: Mapping[str, str], *, huge_pages: bool = False, kernels: Kernels = "auto"
) -> dict[str, str]:
    """`environment` without secrets, and so that the worker imports the very package that is running.

    With `huge_pages` glibc's malloc asks the kernel for them. Threads that wait for others sleep: spinning,
    they would keep these, or another program, off the core. The environment may say otherwise for both.
    """
    clean = {
        name: value for name, value in environment.items() if not any(s in name.upper() for s in SECRETS)
    }
    if huge_pages:
        tunables = [HUGE_PAGES, *filter(None, [clean.get("GLIBC_TUNABLES")])]  # of equal names the last wins
        clean["GLIBC_TUNABLES"] = ":".join(tunables)
    if not any(name in clean for name in WAITING):
        clean["OMP_WAIT_POLICY"] = "passive"
    return with_package({**with_kernels(clean, kernels), **of_python()})


def with_package(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` in which Python imports the very package that is running."""
    package_root = str(Path(gguf_imagegen.__file__).parents[1])
    paths = [package_root, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def _error(failed: Failed) -> ImagegenError:
    match failed.code:
        case "model_load_failed":
            return ModelLoadFailed(f"The model could not be loaded: {failed.message}.")
        case "insufficient_memory":
            return InsufficientMemory(f"Not enough memory: {failed.message}.")
        case "generation_failed":
            return GenerationFailed(f"The image could not be generated: {failed.message}.")
        case "reading_failed":
            return ReadingFailed(f"The text could not be read: {failed.message}.")
        case "conversion_failed":
            return ConversionFailed(f"The file could not be converted: {failed.message}.")
        case "invalid_image":
            return InvalidImage(failed.message, param="image")


def _cause(log: Iterable[str]) -> str | None:
    """The line since the last command that most likely says why; of those of the best kind the last one."""
    lines = list(takewhile(lambda line: not line.startswith(COMMAND), reversed(list(log))))
    for beginning in CAUSES:
        for line in lines:
            if line.startswith(beginning):
                return line.removeprefix(wire.CRASH).removeprefix(wire.ERROR).strip()
    return None


def _log_line(line: bytes) -> str:
    return bare_names(line[:LINE_LIMIT].decode(errors="replace").rstrip())


async def _drain(process: Process) -> None:
    """Read both pipes to their end, or their transports would stay open; then the exit code is known."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.close()
    for stream in (process.stdout, process.stderr):
        while await stream.read(PIPE_BUFFER):
            pass
    with suppress(ConnectionError):
        await process.stdin.wait_closed()
    await process.wait()
