"""What a bench finds out: figures, each the median of several measurements, with their targets."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rich.progress import Progress
from rich.table import Table

from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.settings import Settings

CACHE = Path(__file__).resolve().parents[2] / "build" / "bench"
"""What is fetched and compiled for comparisons, kept between runs."""


class Unavailable(Exception):
    """What a bench compares with cannot be had here, and why."""


class Teller(Protocol):
    def say(self, text: str) -> None:
        """What takes long, or what makes a comparison pointless."""


@dataclass(frozen=True)
class Figure:
    """`value` is the median of what was measured; `most` and `fewest` bound it, None: no bound."""

    bench: str
    name: str
    unit: str
    value: float
    least: float
    greatest: float
    most: float | None
    fewest: float | None

    @property
    def verdict(self) -> str:
        if self.most is None and self.fewest is None:
            return ""
        small = self.most is None or self.value <= self.most
        large = self.fewest is None or self.value >= self.fewest
        return "pass" if small and large else "miss"

    @property
    def target(self) -> str:
        bounds = (("≤", self.most), ("≥", self.fewest))
        return ", ".join(
            f"{sign} {bound:g} {self.unit}".strip() for sign, bound in bounds if bound is not None
        )


class Run:
    """One run of one bench: how much to measure, and where its figures go.

    `size` is that of the pictures of the SD 1.5-sized model.
    """

    def __init__(
        self, name: str, settings: Settings, repeats: int, quick: bool, size: str, bar: Progress
    ) -> None:
        self.settings = settings
        self.repeats = repeats
        self.quick = quick
        self.size = size
        self.figures: list[Figure] = []
        self._name = name
        self._bar = bar
        self._task = bar.add_task(name, total=None)

    def rounds(self, count: int) -> Iterator[int]:
        """Count to `count`, and show it."""
        self._bar.reset(self._task, total=count)
        for number in range(count):
            yield number
            self._bar.advance(self._task)

    def say(self, text: str) -> None:
        """What takes long, or what makes a comparison pointless."""
        self._bar.console.print(f"{self._name}: {text}", highlight=False)

    def tell(
        self,
        name: str,
        unit: str,
        measured: Iterable[float],
        most: float | None = None,
        fewest: float | None = None,
    ) -> None:
        values = list(measured)
        middle = statistics.median(values)
        self.figures.append(Figure(self._name, name, unit, middle, min(values), max(values), most, fewest))
        self.say(f"{name}: {middle:.4g} {unit}".rstrip())  # a run of many minutes may be ended

    def tell_ratios(
        self,
        name: str,
        above: Iterable[float],
        below: Iterable[float],
        most: float | None = None,
        fewest: float | None = None,
    ) -> None:
        """Each measurement divided by that of the same round."""
        self.tell(name, "", (a / b for a, b in zip(above, below, strict=True)), most, fewest)


def table(title: str, figures: list[Figure], threads: int) -> Table:
    where = f"threads {threads}, cores {usable_cores()}, load {os.getloadavg()[0]:.1f}"
    shown = Table("bench", "figure", title=f"{title}, {where}")
    for heading in ("median", "least", "greatest", "target", ""):
        shown.add_column(heading, justify="right")
    for figure in figures:
        numbers = [f"{each:.4g}" for each in (figure.value, figure.least, figure.greatest)]
        mark = {"miss": "[red]miss", "pass": "[green]pass"}.get(figure.verdict, "")
        numbers[0] += f" {figure.unit}"
        shown.add_row(figure.bench, figure.name, *numbers, figure.target, mark)
    return shown


def as_json(figures: list[Figure], unavailable: dict[str, str], threads: int) -> str:
    """`unavailable` says of each bench that could not be run why."""
    content = {
        "threads": threads,
        "cores": usable_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": platform.platform(),
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
        "unavailable": unavailable,
    }
    return json.dumps(content, indent=2) + "\n"
