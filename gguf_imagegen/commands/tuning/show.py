"""What people see of a tuning: progress on stderr, and a table of what was tried."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gguf_imagegen.commands.tuning.tuner import Outcome, Trial, Watcher
from gguf_imagegen.pictures.nearness import SAME


@contextmanager
def shown(console: Console, candidates: int) -> Iterator[Watcher]:
    """A bar on a terminal, a line for each candidate elsewhere."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, candidates)


class Bar:
    """One bar for all candidates; what was found stands above it."""

    def __init__(self, progress: Progress, candidates: int) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=candidates, words="")

    def trying(self, name: str) -> None:
        self._progress.update(self._task, description=name, words="loading")

    def step(self, done: int) -> None:
        self._progress.update(self._task, words=f"{done} steps measured" if done else "warming up")

    def tried(self, trial: Trial) -> None:
        self._progress.console.print(line(trial), highlight=False, markup=False)
        self._progress.advance(self._task)


class Lines:
    """For logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def trying(self, name: str) -> None:
        self._console.print(f"trying {name}", highlight=False, markup=False, soft_wrap=True)

    def step(self, done: int) -> None:
        """Not worth a line."""

    def tried(self, trial: Trial) -> None:
        self._console.print(line(trial), highlight=False, markup=False, soft_wrap=True)


def line(trial: Trial) -> str:
    """`flash attention: 0.45 s a step, 0.87 of the time: faster, kept on`."""
    if trial.speed is None:
        return f"{trial.name}: {trial.words}"
    return f"{trial.name}: {seconds(trial.speed.step)} s a step, {trial.ratio:.2f} of the time: {trial.words}"


def table(outcome: Outcome, steps: int) -> Table:
    """All that was tried; `steps` are those of a picture, `ratio` is its time against the defaults'."""
    rows = Table("seconds", "step", "decode", "picture", "ratio", "PSNR dB", "")
    for trial in outcome.trials:
        if trial.speed is None:
            rows.add_row(trial.name, "", "", "", "", "", trial.words)
            continue
        likeness = "" if trial.psnr is None else "same" if trial.psnr >= SAME else f"{trial.psnr:.1f}"
        rows.add_row(
            trial.name, seconds(trial.speed.step), seconds(trial.speed.decode),
            seconds(trial.speed.picture(steps)), f"{trial.ratio:.2f}", likeness, trial.words,
        )  # fmt: skip
    return rows


def seconds(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
