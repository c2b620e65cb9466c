"""Raw figures put together: a row for each engine, setting and part, with the median of its measurements."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

PICTURE_STEPS: Final = 20
PARTS: Final = {
    "step": "a step",
    "decode": "decoding",
    "picture": "a whole picture",
    "sum": f"a picture of {PICTURE_STEPS} steps, put together",
    "block": "one block",
}
SUBJECTS: Final = {
    "sd15": "Stable Diffusion 1.5",
    "sdxs": "SDXS, one step",
    "z-image": "Z-Image's block",
    "t5": "T5-XXL's layer",
}


def rounded(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


@dataclass(frozen=True, order=True)
class Case:
    """What was measured, of every engine alike; `steps` of a picture."""

    subject: str
    part: str
    kind: str
    size: int
    threads: int
    steps: int

    @property
    def words(self) -> str:
        pixels = f", {self.size}×{self.size}" if self.size else ""
        return f"{self.kind}{pixels}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Row:
    """Seconds. `processor`: those of the processor, of one thread, instead of the clock's."""

    engine: str
    case: Case
    processor: bool
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Raw:
    """The content of some files of `scripts.bench.contest`, in their order."""

    machines: list[dict[str, Any]] = field(default_factory=list)
    engines: dict[str, str] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    likeness: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def read(files: Iterable[Path]) -> Raw:
    """Raises ValueError that names a file which is none of `scripts.bench.contest`."""
    raw = Raw()
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            raw.samples += content["samples"]
            raw.engines |= content["engines"]
            raw.machines.append(content["machine"] | {"file": file.name, "rounds": content["rounds"]})
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{file.name}: no figures of scripts.bench.contest ({error})") from None
        raw.likeness += content.get("likeness", [])
        raw.failed |= content.get("failed", {})
    return raw


def rows(raw: Raw) -> list[Row]:
    """In order of the cases, and in each in that of the engines."""
    found: dict[tuple[Case, str], list[tuple[float, bool]]] = {}
    for sample in raw.samples:
        for part, value, processor in parts(sample):
            case = Case(
                sample["subject"], part, *(sample[key] for key in ("kind", "size", "threads", "steps"))
            )
            found.setdefault((case, sample["engine"]), []).append((value, processor))
    order = list(raw.engines)
    keys = sorted(found, key=lambda key: (key[0], order.index(key[1]) if key[1] in order else len(order)))
    return [
        Row(
            engine,
            case,
            all(each[1] for each in found[case, engine]),
            tuple(each[0] for each in found[case, engine]),
        )
        for case, engine in keys
    ]


def parts(sample: dict[str, Any]) -> Iterator[tuple[str, float, bool]]:
    """Name, seconds, and whether these are the processor's: for one thread, where they are told."""
    times = sample["times"]
    for part in ("step", "decode", "block", "picture"):
        if part in times and (
            part != "picture" or sample["subject"] == "sdxs" or sample["steps"] >= PICTURE_STEPS
        ):
            value, processor = seconds(times, part, sample["threads"])
            yield part, value, processor
    if sample["subject"] == "sd15" and {"step", "decode"} <= set(times):
        step, decode = (seconds(times, part, sample["threads"]) for part in ("step", "decode"))
        yield "sum", PICTURE_STEPS * step[0] + decode[0], step[1] and decode[1]


def seconds(times: dict[str, float], part: str, threads: int) -> tuple[float, bool]:
    processor = threads == 1 and f"{part}_cpu" in times
    return times[f"{part}_cpu" if processor else part], processor


def by_case(all_rows: list[Row]) -> dict[Case, list[Row]]:
    grouped: dict[Case, list[Row]] = {}
    for row in all_rows:
        grouped.setdefault(row.case, []).append(row)
    return grouped
