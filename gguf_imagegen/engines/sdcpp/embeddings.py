"""Textual inversions for sd.cpp, which takes a list of names and files with the model.

It reads a file when a prompt first has its name, and finds names inside of other words. So it gets names that
nobody types, slots, and a slot's file is written when a request first needs it: a new embedding in the folder
loads no model again, and changes no prompt but those that name it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from gguf_imagegen.vocabulary.engine import Embedding, Generate

SLOTS: Final = 512
"""Different embeddings that prompts may name while one model stays loaded."""
_BEGIN, _END = "\x02", "\x03"

_Version = tuple[Path, int, int]


class EmbeddingSlots:
    """The slots of one loaded model; their files lie in `folder` while they are used."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: dict[_Version, int] = {}

    @property
    def every(self) -> Sequence[tuple[str, Path]]:
        """What sd.cpp is told at the load: names and files."""
        return [(_name(number), self._file(number)) for number in range(SLOTS)]

    @contextmanager
    def filled(self, spec: Generate) -> Iterator[Generate]:
        """The same work with slots in place of the embeddings' names, whose files are there meanwhile."""
        numbers = {each.word.casefold(): self._number(each) for each in spec.embeddings}
        try:
            for each in spec.embeddings:
                self._write(each, self._file(numbers[each.word.casefold()]))
            yield replace(
                spec,
                prompt=_in_slots(spec.prompt, numbers),
                negative_prompt=_in_slots(spec.negative_prompt, numbers),
            )
        finally:
            for number in numbers.values():
                self._file(number).unlink(missing_ok=True)

    def _number(self, embedding: Embedding) -> int:
        """A file that has changed gets another slot: the engine keeps what it has read."""
        stat = embedding.path.stat()
        version = (embedding.path, stat.st_mtime_ns, stat.st_size)
        number = self._taken.setdefault(version, len(self._taken))
        if number >= SLOTS:
            raise ValueError(f"prompts have named {SLOTS} different embeddings; unload the model")
        return number

    def _write(self, embedding: Embedding, slot: Path) -> None:
        from gguf_imagegen.modelfiles.embeddings import as_f32  # NumPy: not for a worker that needs none

        slot.write_bytes(as_f32(embedding.path))

    def _file(self, number: int) -> Path:
        return self._folder / f"embedding-{number}.safetensors"


def _name(number: int) -> str:
    return f"{_BEGIN}{number}{_END}"


def _in_slots(text: str, numbers: dict[str, int]) -> str:
    text = text.replace(_BEGIN, " ").replace(_END, " ")  # nobody names a slot
    if not numbers:
        return text
    from gguf_imagegen.modelfiles.embeddings import naming

    return naming(numbers).sub(lambda match: _name(numbers[match[1].casefold()]), text)
