"""This server and its engine, measured: against the bare engine, other builds, sd-server and OpenVINO.

Figures are medians with their least and greatest value, and comparisons are ratios within one run, measured
by turns. A miss of a target is marked and never fails the run: timings depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.machine.cores import usable_cores
from gguf_imagegen.settings import Settings
from scripts.bench import (
    builds,
    cluster,
    images,
    jobs,
    lanes,
    mixed,
    openvino_runtime,
    process,
    pull,
    request,
    restarts,
    sd_server,
    text,
)
from scripts.bench.figures import Figure, Run, Unavailable, as_json, table
from scripts.bench.report import page
from scripts.bench.server import MODEL

Bench = Callable[[Run], Coroutine[Any, Any, None]]
OWN: dict[str, Bench] = {
    "overhead": request.overhead,
    "first-byte": request.first_byte,
    "step": request.step,
    "cancel": jobs.cancel,
    "encoding": images.encoding,
    "followers": jobs.followers,
    "concurrency": jobs.concurrency,
    "lanes": lanes.lanes,
    "cluster": cluster.cluster,
    "cluster-64": cluster.many,
    "mixed": mixed.mixed,
    "restarts": restarts.restarts,
    "journal": restarts.journal,
    "start": process.start,
    "memory": process.memory,
    "swap": process.swap,
    "pull": pull.pull,
    "text": text.text,
}
COMPARISONS: dict[str, Bench] = {
    "builds": builds.builds,
    "options": builds.options,
    "sd-server": sd_server.sd_server,
    "openvino": openvino_runtime.openvino,
}
"""They take long; all but "options" compile, or install gigabytes, when they run for the first time."""
BENCHES = OWN | COMPARISONS
LEAST_REPEATS = 3
FILE_WIDTH = 140
"""Columns of the table where it is not shown on a terminal."""


async def measure(names: list[str], options: argparse.Namespace) -> tuple[list[Figure], dict[str, str]]:
    """The figures of these benches, and of those that could not be run why."""
    figures: list[Figure] = []
    unavailable: dict[str, str] = {}
    columns = TextColumn("{task.description:>11}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with (
        tempfile.TemporaryDirectory(prefix="gguf-imagegen-bench-") as folder,
        Progress(*columns, console=Console(stderr=True)) as bar,
    ):
        write_test_model(Path(folder), hidden=256, single_blocks=5)
        settings = Settings(model=MODEL, models_dir=Path(folder), threads=options.threads)
        for name in names:
            run = Run(name, settings, options.repeats, options.quick, options.size, bar)
            try:
                await BENCHES[name](run)
            except Unavailable as reason:
                run.say(f"not measured: {reason}")
                unavailable[name] = str(reason)
            figures += run.figures
    return figures, unavailable


def parser() -> argparse.ArgumentParser:
    cores = usable_cores()
    made = argparse.ArgumentParser(
        prog="python -m scripts.bench",
        description=(__doc__ or "").split("\n\n")[0],
        epilog=f"{', '.join(COMPARISONS)} take long, and some compile or install for minutes (into build/) "
        "when they run for the first time; they run only when named or with --all.",
    )
    made.add_argument("--only", action="append", choices=BENCHES, metavar="NAME", help=", ".join(BENCHES))
    made.add_argument("--all", action="store_true", help=f"{', '.join(COMPARISONS)}, too")
    made.add_argument("--repeats", type=int, default=7, help="measurements of each figure (7, at least 3)")
    made.add_argument("--threads", type=int, default=cores, help="of the engine; fewer on a busy machine")
    made.add_argument(
        "--size", default="256x256", choices=("256x256", "512x512"), help="pictures of the SD 1.5-sized model"
    )
    made.add_argument("--quick", action="store_true", help="three measurements, fewer images")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    made.add_argument(
        "--report", type=Path, metavar="FOLDER", help="only write a page and charts there, of the FILEs"
    )
    made.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="raw figures of scripts.bench.contest"
    )
    return made


def report(folder: Path, files: list[Path]) -> None:
    """Of these files, or of those that lie in the folder."""
    try:
        print(page.write(folder, files or sorted(folder.glob("*.json"))))
    except ValueError as error:
        sys.exit(str(error))


def main() -> None:
    options = parser().parse_args()
    if options.report:
        report(options.report, options.files)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are ended, too
    options.repeats = LEAST_REPEATS if options.quick else max(LEAST_REPEATS, options.repeats)
    names = options.only or list(BENCHES if options.all else OWN)
    figures, unavailable = uvloop.run(measure(names, options))
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    console.print(table(f"{MODEL} and SD 1.5's size", figures, options.threads))
    if options.json:
        options.json.write_text(as_json(figures, unavailable, options.threads))


if __name__ == "__main__":
    main()
