"""A process that reads text as the real one does, but knows what stands in a picture by its width.

As a program it is the worker; `OUTCOMES` says what it does with which picture.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from gguf_imagegen.engines import pipes
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.pictures import decode
from gguf_imagegen.vocabulary.engine import Read
from gguf_imagegen.vocabulary.errors import InvalidImage
from gguf_imagegen.vocabulary.events import Done, EngineEvent, Failed, TextFound, TextLine

BLANK, HANGS, DIES, FAILS = 65, 66, 67, 68
"""Widths of pictures that hold no text, or do harm; any other holds two lines."""
LINES = (
    TextLine("Hello", 0.99, ((1.0, 2.0), (30.0, 2.0), (30.0, 12.0), (1.0, 12.0))),
    TextLine("world", 0.5, ((1.0, 20.0), (30.0, 20.0), (30.0, 32.0), (1.0, 32.0))),
)


def fake_reader() -> EngineProcess:
    return EngineProcess(stall_timeout=30, command=(sys.executable, str(Path(__file__).resolve())))


def main() -> None:
    commands, send = pipes.take_over()
    while True:
        task = commands.get()
        assert isinstance(task, Read)
        for event in outcome(task):
            send(event)


def outcome(task: Read) -> list[EngineEvent]:
    try:
        width = decode.decode(task.file, max_pixels=task.max_pixels, param="image").width
    except InvalidImage as exc:
        return [Failed("invalid_image", exc.reason)]
    match width:
        case int(w) if w == BLANK:
            return [TextFound(()), Done()]
        case int(w) if w == HANGS:
            threading.Event().wait()
        case int(w) if w == DIES:
            os._exit(7)
        case int(w) if w == FAILS:
            return [Failed("reading_failed", "the library gave up")]
    return [TextFound(LINES), Done()]


if __name__ == "__main__":
    main()
