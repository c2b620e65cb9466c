"""What GPUStack does with a backend and its streams, written anew after its source.

The command: schemas/inference_backend.py, `replace_command_param`. The streams pass two places, both of which
lose what they do not expect: routes/openai.py reads lines and keeps the last one before an empty line;
api/middlewares.py reads frames by schemas/images.py. The page (gpustack-ui, src/utils/fetch-chunk-data.ts and
hooks/use-text-image.ts) reads frames that begin with `data:` and puts pictures together from their pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel


def command(spec: dict[str, Any], **values: str) -> list[str]:
    """The words that follow the entry point."""
    text = str(spec["default_run_command"])
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text.split(" ")


class Item(BaseModel):
    index: int
    object: str
    progress: float
    b64_json: str | None = None
    finish_reason: str | None = None


class Chunk(BaseModel):
    created: int
    object: str
    model: str | None = None
    data: list[Item] = []
    usage: dict[str, Any] | None = None


def by_lines(text: str) -> Iterator[str]:
    """The server's proxy."""
    kept = ""
    for line in text.split("\n")[:-1]:
        if line:
            kept = line + "\n"
        else:
            yield kept + "\n"
            kept = ""


def by_frames(reads: Iterable[str]) -> Iterator[str]:
    """The meter of usage, which passes on what it cannot read, and drops what has no end in its read."""
    for read in reads:
        passed: list[str] = []
        try:
            for part in read.split("\n\n")[:-1]:
                data = part.split("data: ")[-1]
                if not data.startswith("[DONE]"):
                    Chunk(**(parsed := json.loads(data)))
                    data = json.dumps(parsed, separators=(",", ":"))
                passed.append(f"data: {data}\n\n")
        except ValueError:
            passed.append(read)
        yield from passed


class Page:
    """The playground: progress and picture of each index, or the error that it shows."""

    def __init__(self) -> None:
        self.progress: dict[int, list[float]] = {}
        self.pictures: dict[int, str] = {}
        self.error: dict[str, Any] | None = None
        self._held = ""

    def read(self, text: str) -> None:
        parts = (self._held + text).split("\n\n")
        self._held = ""
        for part in filter(None, (each.strip() for each in parts)):
            try:
                self._show(json.loads(part.removeprefix("data:") if part.startswith("data:") else "?"))
            except json.JSONDecodeError:
                self._held += part

    def _show(self, chunk: dict[str, Any]) -> None:
        self.error = chunk.get("error", self.error)
        for item in chunk.get("data", ()):
            self.progress.setdefault(item["index"], []).append(item["progress"])
            self.pictures[item["index"]] = self.pictures.get(item["index"], "") + item.get("b64_json", "")
