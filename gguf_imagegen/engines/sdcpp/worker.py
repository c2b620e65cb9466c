"""The worker process: `python -m gguf_imagegen.engines.sdcpp.worker`. It may die at any time.

The main thread computes; commands and events go through `gguf_imagegen.engines.pipes`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gguf_imagegen.engines import pipes, wire
from gguf_imagegen.engines.pipes import print_line
from gguf_imagegen.engines.sdcpp.phases import LOG_ERROR, LOG_WARN, PhaseMachine, bare_names, is_out_of_memory
from gguf_imagegen.vocabulary.artifacts import RawImage
from gguf_imagegen.vocabulary.engine import Convert, Edges, Generate, LoadSpec, Read, Upscale
from gguf_imagegen.vocabulary.events import (
    Done,
    EngineEvent,
    Failed,
    Loaded,
    Made,
    Notice,
    Preview,
)

DECODE_FAILED: Final = "decode_first_stage failed"
PREVIEW_FAILED: Final = "preview decode failed"
LEAST_SHARED_MS: Final = 1000.0
LEAST_SHARED: Final = 0.1
"""What comes before the sampling must take so long, and that part of the time, to be done for several."""
LEFT_OUT: Final = (
    "load lora tensors from",
    "disabling hires",
    "No latent to RGB projection",
)


def main() -> None:
    commands, send = pipes.take_over()
    worker = Worker(send)
    while True:
        worker.run(commands.get())


class NullResult(Exception):
    """The library returned nothing; why, only its log tells."""


class Worker:
    """Runs commands one after the other, and is the `sdcpp.Handler` that hears what goes on meanwhile."""

    def __init__(self, send: Callable[[EngineEvent], None]) -> None:
        # Only now, with stdout out of the way: a native library may print while it is loaded.
        from gguf_imagegen.engines.sdcpp.library import SdCpp
        from gguf_imagegen.engines.sdcpp.upscaler import Upscaler

        self._send = send
        self._phases = PhaseMachine()
        self._previews = PreviewPlan()
        self._errors: list[str] = []
        self._notices: list[Notice] = []
        self._shares_text = False
        self._paths: set[Path] = set()
        self._sdcpp = SdCpp(self, Path(os.environ.get(wire.SCRATCH) or tempfile.gettempdir()))
        self._upscaler = Upscaler()

    def run(self, command: wire.Command) -> None:
        """Whatever goes wrong becomes a `Failed`, and the next command finds the worker ready."""
        self._errors.clear()
        self._notices.clear()
        self._paths.update(_paths(command))
        try:
            match command:
                case LoadSpec():
                    self._load(command)
                case Generate():
                    self._generate(command)
                case Upscale():
                    self._upscale(command)
                case Convert():
                    self._convert(command)
                case Edges():
                    self._edges(command)
                case Read():
                    raise TypeError("this engine reads no text; the OCR worker does")
        except NullResult:
            self._send(self._failure(command))
        except Exception as exc:
            self._note(f"{type(exc).__name__}: {exc}")
            self._send(self._failure(command))

    def _load(self, spec: LoadSpec) -> None:
        self._phases = PhaseMachine()
        self._shares_text = False
        began = time.monotonic()
        if not self._sdcpp.load(spec):
            raise NullResult
        seconds, on = time.monotonic() - began, (self._sdcpp.backend, self._sdcpp.kernels)
        self._send(Loaded(seconds, self._phases.family, *on))

    def _generate(self, spec: Generate) -> None:
        index = spec.first
        while index < spec.n:
            count = spec.n - index if self._shares_text and _is_text_only(spec) else 1
            try:
                self._make(spec, index, count)
            except NullResult:
                if spec.vae_tiling or not any(DECODE_FAILED in error for error in self._errors):
                    raise
                self._errors.clear()
                self._send(
                    Notice("Decoding the image failed, probably for lack of memory; trying again in tiles.")
                )
                spec = replace(spec, vae_tiling=True)
                self._make(spec, index, count)
            index += count
        self._send(Done())

    def _make(self, spec: Generate, first: int, count: int) -> None:
        """Images in one call of the library: it encodes the prompt once, and gives all of them at its end."""
        self._phases = PhaseMachine(first, count, encodes=bool(spec.init_image or spec.ref_images))
        self._previews = PreviewPlan(spec)
        images = self._sdcpp.generate(spec, first, count)
        if images is None:
            raise NullResult
        timings = self._phases.timings()
        for index, (width, height, rgb) in enumerate(images, first):
            self._send(Made(index, RawImage(width, height, 3, rgb), timings))
        if not _is_text_only(spec):
            return
        own = timings.sampling_ms + timings.decoding_ms
        shared = count * (timings.total_ms - own)
        self._shares_text = shared >= max(LEAST_SHARED_MS, LEAST_SHARED * (shared + own))

    def _upscale(self, spec: Upscale) -> None:
        self._phases = PhaseMachine(spec.index)
        self._previews = PreviewPlan()
        image = self._upscaler.run(spec)
        if image is None:
            raise NullResult
        width, height, rgb = image
        self._send(Made(spec.index, RawImage(width, height, 3, rgb)))
        self._send(Done())

    def _convert(self, task: Convert) -> None:
        from gguf_imagegen.engines.sdcpp.library import convert

        self._phases = PhaseMachine()
        if not convert(task):
            raise NullResult
        self._send(Done())

    def _edges(self, task: Edges) -> None:
        from gguf_imagegen.engines.sdcpp.library import edges

        image = edges(task.image)
        if image is None:
            raise NullResult
        width, height, rgb = image
        self._send(Made(0, RawImage(width, height, 3, rgb)))
        self._send(Done())

    def _failure(self, command: wire.Command) -> Failed:
        message = _explain(self._errors)
        if any(map(is_out_of_memory, self._errors)):
            return Failed("insufficient_memory", message)
        match command:
            case LoadSpec():
                return Failed("model_load_failed", message)
            case Convert():
                return Failed("conversion_failed", message)
        return Failed("generation_failed", message)

    def _note(self, error: str) -> None:
        error = bare_names(error, self._paths)
        if PREVIEW_FAILED not in error:
            self._errors.append(error)
        print_line(wire.ERROR + error)

    def _warn(self, warning: str) -> None:
        """The engine goes on without what it could not do; the user is told once."""
        print_line(wire.WARN + warning)
        notice = Notice(f"The engine says: {warning}.")
        if notice not in self._notices and any(words in warning for words in LEFT_OUT):
            self._notices.append(notice)
            self._send(notice)

    def on_log(self, level: int, text: str) -> None:
        if level >= LOG_ERROR:
            self._note(text)
        elif level == LOG_WARN:
            self._warn(_without_source(bare_names(text, self._paths)))
        for event in self._phases.log(text):
            self._send(event)

    def on_progress(self, step: int, steps: int, seconds: float) -> None:
        for event in self._phases.progress(step, steps, seconds):
            self._send(event)
        if self._previews.on:
            self._sdcpp.arm_preview(self._previews.wants(step + 1 if step < steps else 1))

    def on_preview(self, step: int, width: int, height: int, rgb: bytes) -> None:
        index, steps = self._phases.index, self._phases.steps
        if step == -steps:  # two-stage samplers call a first half -step; the last step has only this half
            step = steps
        if index is not None and step > 0:
            self._previews.taken()
            self._send(Preview(index, step, steps, RawImage(width, height, 3, rgb)))

    def on_abort(self, text: str) -> None:
        print_line(wire.CRASH + bare_names(text, self._paths))


class PreviewPlan:
    """After which steps a preview is wanted: what is not wanted is not even decoded."""

    def __init__(self, spec: Generate | None = None) -> None:
        self.on = spec is not None and spec.preview != "none"
        self._steps = spec.preview_steps if spec else ()
        self._interval = spec.preview_interval if spec else 0.0
        self._last = float("-inf")

    def wants(self, step: int) -> bool:
        if self._steps:
            return step in self._steps
        return time.monotonic() - self._last >= self._interval

    def taken(self) -> None:
        self._last = time.monotonic()


def _paths(command: wire.Command) -> Iterator[Path]:
    """The local files that the library is told of, and may speak of."""
    match command:
        case LoadSpec():
            yield from command.files.values()
        case Generate():
            yield from (lora.path for lora in command.loras)
            yield from (embedding.path for embedding in command.embeddings)
            if command.hires is not None and command.hires.model is not None:
                yield command.hires.model
        case Upscale():
            yield command.path
        case Convert():
            yield from (command.source, command.target)
            if command.vae is not None:
                yield command.vae


def _is_text_only(spec: Generate) -> bool:
    """Else what sd.cpp encodes depends on the seed, or a second pass comes between the images."""
    return not (spec.init_image or spec.ref_images or spec.control_image or spec.hires)


def _explain(errors: list[str]) -> str:
    """The last error says what failed, the first one mostly why."""
    if not errors:
        return "the engine gave no reason"
    first, last = _without_source(errors[0]), _without_source(errors[-1])
    return last if first == last else f"{last} ({first})"


def _without_source(line: str) -> str:
    """The engine's "file.cpp:12   - text" without the place in its source."""
    _, separator, text = line.partition(" - ")
    return text if separator else line


if __name__ == "__main__":
    main()
