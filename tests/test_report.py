"""Raw figures of engines become rows, charts and one page."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.blocks import BLOCKS, turns, weights
from scripts.bench.contest.__main__ import parser, settings
from scripts.bench.contest.contenders import contender
from scripts.bench.contest.engine import parts
from scripts.bench.contest.machine import cpu_words
from scripts.bench.contest.server import times_in
from scripts.bench.report.charts import charts
from scripts.bench.report.page import write
from scripts.bench.report.rows import Raw, by_case, read, rows
from scripts.bench.report.z_image import estimates

MACHINE = {
    "cpu": "A <fast> one", "flags": ["avx2"], "cores": 2, "memory_gb": 8, "system": "Linux", "load": 0.1,
    "commit": "abc1234", "at": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


def sample(
    engine: str, subject: str = "sd15", threads: int = 1, steps: int = 2, **times: float
) -> dict[str, Any]:
    size = 0 if subject in BLOCKS else 256
    setting = {"subject": subject, "kind": "F16", "size": size, "threads": threads, "steps": steps}
    return {"engine": engine, "round": 0, **setting, "times": times}


SAMPLES = [
    sample("plain", step=9, step_cpu=4, decode=30, decode_cpu=20),
    sample("ours", step=3, step_cpu=2, decode=10, decode_cpu=8),
    sample("ours", step=8, step_cpu=3, decode=12, decode_cpu=9),
    sample("server", step=5, decode=25),
    sample("ours", "z-image", block=9, block_cpu=6),
    sample("ours", "t5", block=2, block_cpu=1),
]


@pytest.fixture
def raw_file(tmp_path: Path) -> Path:
    likeness = {**sample("ours"), "against": "plain", "psnr": [51.5, 49.0]}
    content = {
        "machine": MACHINE, "rounds": 3, "engines": dict.fromkeys(["plain", "ours", "server"], "a build"),
        "samples": SAMPLES, "likeness": [likeness], "failed": {"OpenVINO: sd15": "not there"},
    }  # fmt: skip
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(content))
    return path


def test_one_thread_is_told_by_the_processor(raw_file: Path) -> None:
    """Where an engine tells it; the clock elsewhere."""
    found = {(row.engine, row.case.part): row for row in rows(read([raw_file]))}
    assert (found["ours", "step"].values, found["ours", "step"].processor) == ((2, 3), True)
    assert (found["server", "step"].values, found["server", "step"].processor) == ((5,), False)
    assert found["ours", "sum"].median == (20 * 2 + 8 + 20 * 3 + 9) / 2


def test_several_threads_are_told_by_the_clock() -> None:
    raw = Raw(samples=[sample("ours", threads=2, step=3, step_cpu=6)])
    assert [row.values for row in rows(raw)] == [(3,)]


def test_engines_keep_their_order(raw_file: Path) -> None:
    first = next(iter(by_case(rows(read([raw_file]))).values()))
    assert [row.engine for row in first] == ["plain", "ours", "server"]


def test_whole_pictures_are_told_of_twenty_steps_only() -> None:
    raw = Raw(samples=[sample("ours", steps=steps, picture=steps) for steps in (2, 20)])
    assert [(row.case.part, row.values) for row in rows(raw)] == [("picture", (20,))]


def test_charts_are_well_formed_for_both_themes(raw_file: Path) -> None:
    raw = read([raw_file])
    made = charts(rows(raw), raw.likeness, list(raw.engines))
    assert set(made) == {"sd15-step", "sd15-decode", "sd15-sum", "z-image-block", "t5-block", "likeness"}
    for svg in made.values():
        root = ET.fromstring(svg)
        assert root.find("{http://www.w3.org/2000/svg}title") is not None
        assert "prefers-color-scheme: dark" in svg
        assert "var(--ink)" in svg
        assert "#010203" not in svg


def test_charts_are_equal_for_equal_figures(raw_file: Path) -> None:
    raw = read([raw_file])
    first, second = (charts(rows(raw), raw.likeness, list(raw.engines)) for _ in range(2))
    assert first == second


def test_the_page_holds_everything(raw_file: Path, tmp_path: Path) -> None:
    """Charts, machine, commit and what failed within it; the raw file and the charts' files beside it."""
    page = write(tmp_path / "report", [raw_file])
    text = page.read_text()
    assert {"index.html", "raw.json", "sd15-step.svg", "likeness.svg"} <= {
        each.name for each in page.parent.iterdir()
    }
    for words in ("<svg", "A &lt;fast&gt; one", "abc1234", 'href="raw.json"', "not there", "Z-Image-Turbo"):
        assert words in text
    assert "<img" not in text
    assert "src=" not in text


def test_a_page_of_its_own_folder(raw_file: Path) -> None:
    """The raw files may lie in the folder already."""
    assert write(raw_file.parent, [raw_file]).parent == raw_file.parent


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"samples": []}'])
def test_other_files_are_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json: no figures"):
        read([path])


def test_a_picture_of_z_image_is_reckoned(raw_file: Path) -> None:
    """Nine steps of 32 blocks; the decoding was measured at another size."""
    (found,) = estimates(rows(read([raw_file])))
    assert found.steps == 9 * 32 * 6
    assert found.prompt == pytest.approx(2 * 64 * 3.6e9 / BLOCKS["t5"].operations)
    assert found.decode is None


def test_stamps_become_parts() -> None:
    """Begin, first step's begin, two steps' ends, picture."""
    stamps = [(0.0, 0.0), (1.0, 0.5), (3.0, 1.5), (6.0, 3.0), (10.0, 5.0)]
    whole = parts(stamps, 2)
    assert whole == {
        "step": 2.5, "step_cpu": 1.25, "decode": 4, "decode_cpu": 2, "prompt": 1, "prompt_cpu": 0.5,
        "picture": 10, "picture_cpu": 5,
    }  # fmt: skip
    assert parts(stamps[:-1], 2, decode=False) == {
        key: whole[key] for key in ("step", "step_cpu", "prompt", "prompt_cpu")
    }


def test_a_server_tells_its_times_in_its_log() -> None:
    log = "get_learned_condition completed, taking 0.50s\nsampling completed, taking 8.00s\n"
    log += "generating 1 latent images completed, taking 8.01s\ndecode_first_stage completed, taking 20.00s\n"
    assert times_in(log, 2) == {"step": 4, "decode": 20, "prompt": 0.5}


def test_settings_are_all_combinations() -> None:
    """A block has no size; SDXS draws in one step."""
    words = shlex.split("--json x --subjects sd15 sdxs t5 --types F16 Q8_0 --sizes 256 512 --threads 1 2")
    found = list(settings(parser().parse_args(words)))
    assert len(found) == 8 + 8 + 4
    assert {each.steps for each in found if each.subject == "sdxs"} == {1}
    assert {each.size for each in found if each.is_block} == {0}


@pytest.mark.parametrize("words", ["ours", "=installed", "ours=/nowhere"])
def test_an_engine_that_is_none_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"expected NAME=WHAT|no engine there"):
        contender(words)


def test_the_processor_is_named() -> None:
    told = "model name\t: EPYC 9\nflags\t\t: fpu avx2 avx512f amx_int8\n"
    assert cpu_words(told) == {"cpu": "EPYC 9", "flags": ["avx2", "avx512f", "amx_int8"]}


def test_blocks_have_their_models_sizes() -> None:
    """Z-Image: 6 billion weights in 34 blocks; T5-XXL: 4.6 in 24 layers."""
    sizes = {name: sum(a * b for a, b in block.matrices.values()) for name, block in BLOCKS.items()}
    assert sizes["z-image"] * 34 == pytest.approx(6.0e9, rel=0.02)
    assert sizes["t5"] * 24 == pytest.approx(4.6e9, rel=0.02)
    assert turns(BLOCKS["z-image"])[0].shape == (1088, 64)
    assert [name for name, _ in weights_of_a_small_block()] == [*"qkvo", "gate", "up", "down"]


def weights_of_a_small_block() -> list[tuple[str, Any]]:
    from scripts.bench.blocks import Block

    return list(weights(Block("small", 64, 2, 32, 128, 8)))
