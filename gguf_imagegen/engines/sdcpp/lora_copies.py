"""LoRAs for sd.cpp whose tensors have names that it does not know: it gets copies in which they have.

A copy is made when a picture first needs it. It lies in the worker's own folder, which goes with the worker.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gguf_imagegen.vocabulary.engine import Generate, Lora

MOST_BYTES: Final = 1 << 30
"""What copies may take together once no picture needs them any more."""


class LoraCopies:
    """The copies of one worker, those used last at the end."""

    def __init__(self, folder: Path, most: int = MOST_BYTES) -> None:
        self._folder = folder
        self._most = most
        self._sizes: dict[Path, int] = {}

    @contextmanager
    def renamed(self, spec: Generate) -> Iterator[Generate]:
        """The same work with LoRAs that the engine knows; their files are there meanwhile."""
        try:
            yield replace(spec, loras=tuple(map(self._known, spec.loras)))
        finally:
            self._sweep()

    def _known(self, lora: Lora) -> Lora:
        if not lora.renamed:
            return lora
        copy = self._copy_of(lora)
        if copy not in self._sizes:
            from gguf_imagegen.modelfiles.lora_names import write_renamed  # NumPy, as in `embeddings`

            shutil.rmtree(copy.parent, ignore_errors=True)  # what a full disk has left there
            copy.parent.mkdir()
            write_renamed(lora.path, lora.renamed, copy)
        self._sizes[copy] = self._sizes.pop(copy, copy.stat().st_size)
        return replace(lora, path=copy)

    def _copy_of(self, lora: Lora) -> Path:
        """A file that has changed has another copy; its own name is what the engine's log will say."""
        stat = lora.path.stat()
        state = (str(lora.path), stat.st_mtime_ns, stat.st_size, sorted(lora.renamed.items()))
        return self._folder / f"lora-{hashlib.sha256(repr(state).encode()).hexdigest()[:16]}" / lora.path.name

    def _sweep(self) -> None:
        """The oldest go until the rest is small enough."""
        while sum(self._sizes.values()) > self._most:
            copy = next(iter(self._sizes))
            del self._sizes[copy]
            shutil.rmtree(copy.parent, ignore_errors=True)
