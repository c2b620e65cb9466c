"""The page: charts, tables, the machine and the commit in one HTML file, the raw figures beside it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from scripts.bench.report.charts import charts
from scripts.bench.report.rows import PARTS, SUBJECTS, Case, Raw, Row, by_case, read, rounded, rows
from scripts.bench.report.z_image import CORES, EFFICIENCY, Estimate, estimates

STYLE: Final = """
:root {color-scheme: light dark; --line: #d1d9e0}
body {font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem}
svg {max-width: 100%; height: auto; margin: .5rem 0}
table {border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums}
th, td {padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right}
th:first-child, td:first-child {text-align: left}
@media (prefers-color-scheme: dark) {:root {--line: #3d444d} body {background: #0d1117; color: #e6edf3}}
"""


def write(folder: Path, files: Sequence[Path]) -> Path:
    """`index.html`, an SVG for each chart, and the raw files; the page's path. Raises as `read` does."""
    raw = read(files)
    found = rows(raw)
    made = charts(found, raw.likeness, list(raw.engines))
    folder.mkdir(parents=True, exist_ok=True)
    for name, svg in made.items():
        (folder / f"{name}.svg").write_text(svg, encoding="utf-8")
    for file in files:
        if file.resolve() != (folder / file.name).resolve():
            shutil.copyfile(file, folder / file.name)
    page = folder / "index.html"
    page.write_text(html(raw, found, made), encoding="utf-8")
    return page


def html(raw: Raw, found: list[Row], made: dict[str, str]) -> str:
    drawn = "\n".join(f"<figure>{svg}</figure>" for svg in made.values())
    sections = [
        "<h1>Engines side by side</h1>",
        machines(raw.machines),
        drawn,
        "<h2>Figures</h2>",
        *(case_table(case, of_case) for case, of_case in by_case(found).items()),
        z_image_table(estimates(found)),
        failures(raw.failed),
        "<h2>Engines</h2>",
        table(("engine", "what it is"), raw.engines.items()),
    ]
    head = f'<meta charset="utf-8"><title>Engines side by side</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(sections)}</body></html>\n'


def machines(all_of_them: Iterable[dict[str, Any]]) -> str:
    lines = (
        (
            f'{each["cpu"]}, {each["cores"]} cores, {each["memory_gb"]} GB; {" ".join(each["flags"])}',
            each["system"], each["load"], each["commit"], each["at"], each["rounds"],
            f'<a href="{escape(each["file"])}">{escape(each["file"])}</a>',
        )
        for each in all_of_them
    )  # fmt: skip
    return table(("machine", "system", "load", "commit", "when", "rounds", "raw figures"), lines)


def case_table(case: Case, found: Sequence[Row]) -> str:
    """Each engine's seconds, and how many times as long as the fastest it took."""
    fastest = min(row.median for row in found)
    lines = (
        (
            row.engine, rounded(row.median), rounded(min(row.values)), rounded(max(row.values)),
            len(row.values), "processor" if row.processor else "clock", f"{row.median / fastest:.2f}",
        )
        for row in found
    )  # fmt: skip
    title = f"{SUBJECTS.get(case.subject, case.subject)}: {PARTS[case.part]}; {case.words}"
    heads = ("engine", "seconds, median", "least", "greatest", "times", "of the", "÷ the fastest")
    return f"<h3>{escape(title)}</h3>{table(heads, lines)}"


def z_image_table(all_of_them: Sequence[Estimate]) -> str:
    if not all_of_them:
        return ""
    lines = (
        (
            f"{each.engine}, {each.kind}", f"{each.block:.2f}", f"{each.steps:.0f}", part(each.prompt),
            part(each.decode), f"{each.whole:.0f}", f"{each.desktop:.0f}",
        )
        for each in all_of_them
    )  # fmt: skip
    heads = ("engine", "a block", "9 steps", "prompt", "decoding", "one core", f"{CORES} cores")
    title = "Z-Image-Turbo at 512×512, reckoned from one block, in seconds"
    note = (
        f"No such picture was drawn. {CORES} cores are taken for {CORES * EFFICIENCY:g} times one like this."
    )
    return f"<h3>{title}</h3><p>{note}</p>{table(heads, lines)}"


def part(seconds: float | None) -> str:
    return "not measured" if seconds is None else f"{seconds:.1f}"


def failures(failed: dict[str, str]) -> str:
    return f"<h2>Not measured</h2>{table(('what', 'why'), failed.items())}" if failed else ""


def table(heads: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """Cells are escaped, but for links."""
    above = "".join(f"<th>{escape(head)}</th>" for head in heads)
    below = "".join(f"<tr>{''.join(f'<td>{cell(each)}</td>' for each in line)}</tr>" for line in lines)
    return f"<table><tr>{above}</tr>{below}</table>"


def cell(content: object) -> str:
    text = str(content)
    return text if text.startswith("<a ") else escape(text)
