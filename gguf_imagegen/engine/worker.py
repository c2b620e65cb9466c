"""The worker process: `python -m gguf_imagegen.engine.worker`. It may die at any time, and takes nothing along.

Commands come on stdin and events leave on what was stdout (frames of `gguf_imagegen.engine.wire`); whatever
native code prints goes to stderr. Three threads: the main one computes, one reads, one writes. It dies with
its parent: by the end of stdin, and on Linux by a signal of the kernel.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from queue import SimpleQueue
from typing import BinaryIO, Final

from gguf_imagegen.engine import wire
from gguf_imagegen.engine.phases import PhaseMachine, bare_names, is_out_of_memory
from gguf_imagegen.engine.protocol import GenerateSpec, ModelSpec
from gguf_imagegen.events import Done, EngineEvent, Failed, ImageMade, Loaded, Notice, Preview

CRASH: Final = "CRASH: "
ERROR: Final = "ERROR: "
WARN: Final = "WARN: "
DECODE_FAILED: Final = "decode_first_stage failed"
PREVIEW_FAILED: Final = "preview decode failed"
PR_SET_PDEATHSIG: Final = 1

Send = Callable[[EngineEvent], None]


def main() -> None:
    messages = _private_stdout()
    _become_worker()
    commands: SimpleQueue[wire.Command] = SimpleQueue()
    events: SimpleQueue[EngineEvent] = SimpleQueue()
    threading.Thread(target=_read_commands, args=(sys.stdin.buffer, commands), daemon=True).start()
    threading.Thread(target=_write_events, args=(messages, events), daemon=True).start()
    worker = Worker(events.put)
    while True:
        worker.run(commands.get())


class Worker:
    """Runs commands one after the other and hears what the engine says meanwhile."""

    def __init__(self, send: Send) -> None:
        from gguf_imagegen.engine.sdcpp import NullResult, SdCpp

        self._send = send
        self._phases = PhaseMachine()
        self._previews = PreviewPlan()
        self._errors: list[str] = []
        self._null_result = NullResult
        self._sdcpp = SdCpp(self)

    def run(self, command: wire.Command) -> None:
        """Everything that goes wrong here becomes a `Failed`: the loop must go on."""
        self._errors.clear()
        try:
            match command:
                case wire.Load(model):
                    self._load(model)
                case wire.Generate(spec):
                    self._generate(spec)
        except Exception as exc:
            if not isinstance(exc, self._null_result):
                self._note(f"{type(exc).__name__}: {exc}")
            self._send(self._failure(loading=isinstance(command, wire.Load)))

    def _load(self, model: ModelSpec) -> None:
        from gguf_imagegen.engine.sdcpp import describe

        self._phases = PhaseMachine()
        began = time.monotonic()
        self._sdcpp.load(model)
        self._send(Loaded(time.monotonic() - began, self._phases.family, describe().backend))

    def _generate(self, spec: GenerateSpec) -> None:
        for index in range(spec.n):
            try:
                self._make(spec, index)
            except self._null_result:
                if spec.vae_tiling or not any(DECODE_FAILED in error for error in self._errors):
                    raise
                self._send(Notice("Decoding the image failed, most likely for lack of memory: retrying in tiles."))
                self._errors.clear()
                spec = replace(spec, vae_tiling=True)
                self._make(spec, index)
        self._send(Done())

    def _make(self, spec: GenerateSpec, index: int) -> None:
        encodes = spec.init_image is not None or bool(spec.ref_images)
        self._phases = PhaseMachine(index, encodes=encodes)
        self._previews = PreviewPlan(spec)
        width, height, rgb = self._sdcpp.generate_one(spec, index)
        self._send(ImageMade(index, spec.seed + index, width, height, self._phases.timings(), rgb))

    def _failure(self, *, loading: bool) -> Failed:
        message = _explain(self._errors)
        if is_out_of_memory(" ".join(self._errors)):
            return Failed("insufficient_memory", message)
        return Failed("model_load_failed" if loading else "generation_failed", message)

    def _note(self, error: str) -> None:
        error = bare_names(error)
        if PREVIEW_FAILED not in error:
            self._errors.append(error)
        _print_line(ERROR + error)

    # What follows is called in the middle of native code, where an exception would be lost: see `_quietly`.

    def on_log(self, level: int, text: str) -> None:
        from gguf_imagegen.engine.sdcpp import LOG_ERROR, LOG_WARN

        if level >= LOG_ERROR:
            self._note(text)
        elif level == LOG_WARN:
            _print_line(WARN + bare_names(text))
        for event in self._phases.log(text):
            self._send(event)

    def on_progress(self, step: int, steps: int, seconds: float) -> None:
        for event in self._phases.progress(step, steps, seconds):
            self._send(event)
        if self._previews.on:
            self._sdcpp.arm_preview(self._previews.wants(step + 1))

    def on_preview(self, step: int, width: int, height: int, rgb: bytes) -> None:
        # Two-stage samplers call their first half -step: nothing is done yet, no preview.
        index, steps = self._phases.index, self._phases.steps
        if index is not None and self._previews.take(step):
            self._send(Preview(index, step, steps, width, height, rgb))

    def on_abort(self, text: str) -> None:
        _print_line(CRASH + bare_names(text))
