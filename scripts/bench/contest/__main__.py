"""Engines side by side: each round measures every setting with every engine, one after the other.

Raw times go to a JSON file, rewritten after each measurement, which `python -m scripts.bench --report` reads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from scripts.bench.blocks import BLOCKS
from scripts.bench.contest.contenders import DEFAULTS, HELP, Contender, Setting, contender
from scripts.bench.contest.likeness import likenesses
from scripts.bench.contest.machine import machine
from scripts.bench.contest.priority import take_priority


def settings(options: argparse.Namespace) -> Iterator[Setting]:
    for subject, threads, kind in itertools.product(options.subjects, options.threads, options.types):
        if subject in BLOCKS:
            yield Setting(subject, kind, 0, threads, 1)
        else:
            steps = 1 if subject == "sdxs" else options.steps
            yield from (Setting(subject, kind, size, threads, steps) for size in options.sizes)


def contest(
    engines: list[Contender], chosen: list[Setting], options: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """The raw figures; what failed once is told, and not tried again."""
    raw: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "samples": [], "failed": {}}
    raw["engines"] = {each.name: ",".join((Path(each.what).name, *each.words)) for each in engines}
    flags = ["--no-decode"] * options.no_decode
    for number, setting, engine in itertools.product(range(options.rounds), chosen, engines):
        key = f"{engine.name}: {setting}"
        if key in raw["failed"]:
            continue
        try:
            times = engine.times(setting, *flags)
        except (RuntimeError, OSError, LookupError) as error:
            raw["failed"][key] = str(error)
            console.print(f"not measured: {key}: {error}")
            continue
        if times:
            raw["samples"].append({"engine": engine.name, "round": number, **vars(setting), "times": times})
            console.print(f"{number + 1}/{options.rounds} {engine.name}: {words(setting)}: {rounded(times)}")
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    return raw


def words(setting: Setting) -> str:
    return f"{setting.subject} {setting.kind} {setting.size or ''} threads {setting.threads}"


def rounded(times: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in times.items())


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m scripts.bench.contest", description=(__doc__ or "").split("\n\n")[0]
    )
    made.add_argument("--engine", action="append", metavar="NAME=WHAT", help=" ".join(HELP.split()))
    made.add_argument("--subjects", nargs="+", default=["sd15"], choices=("sd15", "sdxs", *BLOCKS))
    made.add_argument("--types", nargs="+", default=["F16"], choices=("F16", "Q8_0", "Q4_0", "Q4_K"))
    made.add_argument("--sizes", nargs="+", type=int, default=[256])
    made.add_argument("--threads", nargs="+", type=int, default=[1])
    made.add_argument("--steps", type=int, default=2, help="of a picture; 20 draws whole ones")
    made.add_argument("--no-decode", action="store_true", help="steps only, of the builds of sd.cpp")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument(
        "--likeness", type=int, metavar="SEEDS", help="compare pictures with the first engine's, too"
    )
    made.add_argument("--json", type=Path, required=True, help="where the raw times go")
    return made


def main() -> None:
    options = parser().parse_args()
    console = Console(stderr=True, highlight=False, width=160)
    try:
        engines = [contender(text) for text in options.engine or DEFAULTS]
    except ValueError as error:
        sys.exit(str(error))
    take_priority()
    chosen = list(settings(options))
    raw = contest(engines, chosen, options, console)
    if options.likeness:
        raw["likeness"] = likenesses(engines, chosen, options.likeness, console)
        options.json.write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
