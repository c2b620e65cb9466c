"""A worker's end of the two pipes to its parent: commands come on stdin, events leave on what was stdout.

Both are frames of `gguf_imagegen.engines.wire`; whatever native code prints goes to stderr. One thread reads
and one writes, so that the main one can compute. The process dies with its parent: by the end of stdin, and
on Linux by a signal of the kernel.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import BinaryIO

from gguf_imagegen.engines import wire
from gguf_imagegen.machine.processes import become_worker
from gguf_imagegen.vocabulary.events import EngineEvent


def take_over() -> tuple[SimpleQueue[wire.Command], Callable[[EngineEvent], None]]:
    """Make this process a worker: the commands as they come, and the function that sends an event."""
    messages = _private_stdout()
    become_worker()
    sys.excepthook = _give_up
    commands: SimpleQueue[wire.Command] = SimpleQueue()
    events: SimpleQueue[EngineEvent] = SimpleQueue()
    threading.Thread(target=_read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    threading.Thread(target=_write_events, args=(messages, events), daemon=True).start()
    return commands, events.put


def print_line(text: str) -> None:
    """To stderr, past Python's buffers: the process may be about to abort."""
    os.write(2, text.replace("\n", " ").encode(errors="replace") + b"\n")


def _give_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What the main thread does not handle, as an engine that does not load, ends the process at once.

    Python's own way to the end is none here: it aborts where another thread reads stdin.
    """
    sys.__excepthook__(kind, error, trace)
    print_line(f"{wire.CRASH}{kind.__name__}: {error}")
    os._exit(1)


def _private_stdout() -> int:
    """A descriptor of the message pipe that nobody prints to; stdout becomes stderr."""
    messages = os.dup(1)
    os.dup2(2, 1)
    return messages


def _read_commands(stdin: BinaryIO, commands: SimpleQueue[wire.Command]) -> None:
    """Until the end of stdin, which ends the process at once, in the middle of whatever it computes."""
    try:
        while prefix := stdin.read(wire.PREFIX.size):
            commands.put(wire.decode_command(stdin.read(wire.decode_prefix(prefix))))
    except Exception as exc:
        print_line(f"{wire.CRASH}unreadable command: {exc}")
        os._exit(2)
    os._exit(0)


def _write_events(messages: int, events: SimpleQueue[EngineEvent]) -> None:
    """For ever; without a reader the process has no purpose."""
    try:
        while True:
            frame = memoryview(wire.encode(events.get()))
            while frame:
                frame = frame[os.write(messages, frame) :]
    except Exception as exc:
        print_line(f"{wire.CRASH}unwritable event: {exc}")
        os._exit(3)
