"""The process that reads text: `python -m gguf_imagegen.engines.ocr.worker THREADS`. It may die at any time.

RapidOCR (https://github.com/RapidAI/RapidOCR) on onnxruntime, with the models in its wheel: PP-OCR's
detection and recognition of Latin, Chinese and Japanese writing. Pictures are decoded here, too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from gguf_imagegen.engines import pipes, wire
from gguf_imagegen.engines.pipes import print_line
from gguf_imagegen.machine.limits import bound_memory
from gguf_imagegen.pictures import decode
from gguf_imagegen.vocabulary.engine import Read
from gguf_imagegen.vocabulary.errors import InvalidImage
from gguf_imagegen.vocabulary.events import Done, EngineEvent, Failed, TextFound, TextLine

LONGEST: Final = 2000
"""Pixels of the longest side that the detection sees; RapidOCR shrinks to the same."""
MEMORY: Final = 4 << 30
"""Bytes that this process may write to; a picture of 49 Mpx takes 1.4 GB."""
MAX_ASPECT: Final = 50.0
"""Banners and columns of text are long."""


def main() -> None:
    commands, send = pipes.take_over()
    _bound_memory()
    reader = Reader(int(sys.argv[1]))
    while True:
        match commands.get():
            case Read() as task:
                for event in _outcome(reader, task):
                    send(event)
            case other:
                send(Failed("reading_failed", f"this process does no {type(other).__name__}"))


class Reader:
    """RapidOCR, loaded."""

    def __init__(self, threads: int) -> None:
        from rapidocr import RapidOCR  # only now, with stdout out of the way and memory bounded

        self._ocr = RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Global.log_level": "error",
                "Global.max_side_len": LONGEST,
            }
        )

    def read(self, task: Read) -> tuple[TextLine, ...]:
        """The lines of text. Raises InvalidImage."""
        picture = decode.decode(
            task.file,
            max_pixels=task.max_pixels,
            param="image",
            max_aspect=MAX_ASPECT,
            enough=(LONGEST, LONGEST),
        )
        whole = picture.size
        flat = decode.flatten(picture)
        flat.thumbnail((LONGEST, LONGEST))
        scale = whole[0] / flat.width, whole[1] / flat.height
        found = self._ocr(np.asarray(flat)[:, :, ::-1].copy())  # BGR, as OpenCV has it
        if found.txts is None:
            return ()
        return tuple(
            TextLine(text, round(float(score), 4), _corners(box, scale))
            for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True)
        )


def _corners(box: npt.NDArray[np.float32], scale: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x) * scale[0], 1), round(float(y) * scale[1], 1)) for x, y in box)


def _outcome(reader: Reader, task: Read) -> Iterator[EngineEvent]:
    """Whatever goes wrong becomes a `Failed`, and the next picture finds the process ready."""
    try:
        yield TextFound(reader.read(task))
        yield Done()
    except InvalidImage as exc:
        yield Failed("invalid_image", exc.reason)
    except Exception as exc:  # of foreign libraries; the process goes on
        print_line(f"{wire.ERROR}{type(exc).__name__}: {exc}")
        if isinstance(exc, MemoryError) or "alloc" in str(exc):
            yield Failed("insufficient_memory", "the picture needs too much to be read")
        else:
            yield Failed("reading_failed", f"the library gave up with {type(exc).__name__}")


def _bound_memory() -> None:
    """Where the system can; then a picture that asks for more fails, and nothing else does."""
    bound_memory(MEMORY)


if __name__ == "__main__":
    main()
