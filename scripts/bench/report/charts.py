"""Bars of seconds and points of decibels as SVG, which look right on white and on black.

Every chart brings its own background, and takes the colours of `prefers-color-scheme`: where a page's theme
is another than the system's, it is a card of the other shade, and still can be read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, Final

from scripts.bench.report.rows import PARTS, PICTURE_STEPS, SUBJECTS, Case, Row, by_case, rounded

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
"""Stand for the colours that depend on the theme; variables of CSS take their place."""
THEMES: Final = """<style>
svg {--ink: #1f2328; --faint: #d1d9e0; --paper: #ffffff}
@media (prefers-color-scheme: dark) {svg {--ink: #e6edf3; --faint: #3d444d; --paper: #0d1117}}
text {font-family: system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif}
</style>"""
COLOURS: Final = ("#8b949e", "#b08800", "#2da44e", "#8250df", "#bf5af2", "#0969da", "#cf222e")
"""By the order of the engines; each is visible on both backgrounds."""
WIDTH, BAR = 7.6, 0.26
"""Inches."""
GROUP_GAP = 1.35
"""Of a heading above each group of bars, in bars."""


def charts(rows: list[Row], likeness: list[dict[str, Any]], engines: Sequence[str]) -> dict[str, str]:
    """SVG by the name of its file without the ending."""
    made = {}
    for subject, part in dict.fromkeys((row.case.subject, row.case.part) for row in rows):
        cases = {
            case: found
            for case, found in by_case(rows).items()
            if (case.subject, case.part) == (subject, part)
        }  # fmt: skip
        title = f"{SUBJECTS.get(subject, subject)}: {PARTS[part]}, seconds"
        made[f"{subject}-{part}"] = bars(title, cases, engines)
    if likeness:
        made["likeness"] = points(likeness, engines)
    return made


def bars(title: str, cases: dict[Case, list[Row]], engines: Sequence[str]) -> str:
    """Groups of one bar for each engine, with the median at its end and a line from least to greatest."""
    count = sum(len(found) + GROUP_GAP for found in cases.values())
    figure, axes = canvas(title, count)
    longest = max(max(row.values) for found in cases.values() for row in found)
    at = 0.0
    for case, found in cases.items():
        axes.text(0, at + 0.2, heading(case, found), weight="bold", va="center", size=9, color=INK)
        for row in found:
            at += 1
            axes.barh(at, row.median, 0.72, color=colour(row.engine, engines))
            if len(row.values) > 1:
                axes.plot([min(row.values), max(row.values)], [at, at], color=INK, linewidth=1)
            axes.text(
                max(row.values) + longest * 0.012, at, rounded(row.median), va="center", size=9, color=INK
            )
            axes.text(-longest * 0.012, at, label(row, found), va="center", ha="right", size=9, color=INK)
        at += GROUP_GAP
    axes.set_xlim(0, longest * 1.1)
    axes.set_ylim(at - 0.4, -0.5)
    return svg(figure, title)


def heading(case: Case, found: Sequence[Row]) -> str:
    drawn = f", {case.steps} steps" if case.part == "picture" and case.steps >= PICTURE_STEPS else ""
    clock = "seconds of the processor" if all(row.processor for row in found) else "by the clock"
    return f"{case.words}{drawn}; {clock}"


def label(row: Row, found: Sequence[Row]) -> str:
    mixed = len({each.processor for each in found}) > 1
    return row.engine + (" (processor)" if row.processor else " (clock)") * mixed


def points(likeness: list[dict[str, Any]], engines: Sequence[str]) -> str:
    """Decibels of every seed: a row for each engine and type."""
    title = f"Likeness to pictures of {likeness[0]['against']}, dB (PSNR); more is more alike"
    figure, axes = canvas(title, len(likeness) + 0.6)
    values = [value for each in likeness for value in each["psnr"]]
    low, high = min(*values, 40) - 3, max(values) + 3
    for at, each in enumerate(likeness):
        axes.scatter(each["psnr"], [at] * len(each["psnr"]), s=26, color=colour(each["engine"], engines))
        name = f"{each['engine']}, {each['kind']}, {each['size']}×{each['size']}"
        axes.text(low - (high - low) * 0.012, at, name, va="center", ha="right", size=9, color=INK)
        axes.text(high, at, f"least {min(each['psnr']):.1f}", va="center", ha="right", size=9, color=INK)
    axes.set_xlim(low, high)
    axes.set_ylim(len(likeness) - 0.4, -0.6)
    return svg(figure, title)


def colour(engine: str, engines: Sequence[str]) -> str:
    return COLOURS[list(engines).index(engine) % len(COLOURS)] if engine in engines else INK


def canvas(title: str, count: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # of the dev extra

    height = BAR * count + 0.8
    figure = Figure((WIDTH, height), facecolor=PAPER)
    axes = figure.add_axes((0.27, 0.34 / height, 0.70, 1 - 0.78 / height), facecolor=PAPER)
    figure.text(0.02, 1 - 0.26 / height, title, size=11, weight="bold", va="center", color=INK)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_yticks([])
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def svg(figure: Any, title: str) -> str:
    """Equal for equal figures, with the title for who cannot see it, and the colours of the theme."""
    import matplotlib as mpl

    target = io.StringIO()
    fixed: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": title}
    with mpl.rc_context(fixed):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    for stand_in, variable in ((INK, "ink"), (FAINT, "faint"), (PAPER, "paper")):
        text = text.replace(stand_in, f"var(--{variable})")
    text = re.sub(r"font: ([^;\"]*?)'[^;\"]*", lambda found: f"font: {found[1]}system-ui, sans-serif", text)
    return re.sub(r"(<svg[^>]*)>", rf'\1 role="img">\n<title>{title}</title>\n{THEMES}', text, count=1)
