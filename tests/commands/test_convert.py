"""Conversions by the real engine, as a user runs them: what comes out, what is refused, what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from gguf_imagegen.engines.conversion import ordered, replacing, require_room
from gguf_imagegen.modelfiles.conversion import TYPES, checked_rules, converted_bytes, stamp
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.vocabulary.errors import DiskFull, InsufficientMemory, InvalidRequest, ModelBusy
from tests.commands.test_cli import cli, fails_in_one_line
from tests.conftest import DEADLINE


@pytest.fixture
def model(model_dir: Path, tmp_path: Path) -> Path:
    for name in ("tiny-random.gguf", "tiny-random-tae.gguf"):
        os.link(model_dir / name, tmp_path / name)
    return tmp_path / "tiny-random.gguf"


@pytest.fixture(scope="module")
def f16(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in F16, written by the command, with its decoder beside it."""
    folder = tmp_path_factory.mktemp("f16")
    target = folder / "wide.gguf"
    run = cli("convert", model_dir / "tiny-random.gguf", target, "--type", "f16", "--no-check")
    assert run.returncode == 0, run.stderr
    assert "pictures were not compared: as --no-check says" in run.stdout
    os.link(model_dir / "tiny-random-tae.gguf", folder / "wide-tae.gguf")
    return target


def texts(path: Path) -> dict[str, object]:
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if not name.startswith("GGUF.")}


@pytest.mark.parametrize(("kind", "least"), [("q8_0", 25.0), ("q4_0", 5.0)])
def test_a_model_gets_smaller_and_its_picture_is_compared(
    f16: Path, tmp_path: Path, kind: str, least: float
) -> None:
    """The type is that of nearly all bytes, the figure is told, the metadata say what was done to what."""
    target = tmp_path / f"small-{kind}.gguf"
    run = cli("convert", f16, target, "--type", kind.upper(), "--threads", "1")
    assert run.returncode == 0, run.stderr
    header = read_header(target)
    assert header.quantization[kind.upper()] > 0.9
    assert header.size < 0.6 * f16.stat().st_size
    assert set(header.tensors) == set(read_header(f16).tensors)
    said = re.search(r"within ([\d.]+) dB PSNR of the source's|to the byte", run.stdout)
    assert said, run.stdout
    assert float(said[1] or 100) > least
    told = texts(target)
    assert (told["gguf_imagegen.type"], told["gguf_imagegen.source"]) == (kind, "wide.gguf")
    assert len(str(told["gguf_imagegen.source_sha256"])) == 64
    assert str(tmp_path) not in str(told)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_rules_give_tensors_types_of_their_own(f16: Path, tmp_path: Path) -> None:
    target = tmp_path / "mixed.gguf"
    run = cli(
        "convert", f16, target, "--type", "q8_0", "--rules", "double_blocks=q4_0,single_blocks=f16",
        "--no-check",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    types = {name: t.type for name, t in read_header(target).tensors.items() if len(t.shape) == 2}
    assert {t for name, t in types.items() if "double_blocks" in name} == {"Q4_0"}
    assert {t for name, t in types.items() if "single_blocks" in name} == {"F16"}
    assert "Q8_0" in types.values()


def test_the_weights_are_the_sources(model_dir: Path, f16: Path) -> None:
    """The metadata that were put in before the data moved nothing out of its place."""
    wanted = {t.name: t for t in gguf.GGUFReader(model_dir / "tiny-random.gguf").tensors}
    for found in gguf.GGUFReader(f16).tensors:
        source = wanted[found.name]
        weights = gguf.dequantize(source.data, source.tensor_type)
        assert np.allclose(gguf.dequantize(found.data, found.tensor_type), weights, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("length", [0, 3, 8, 17, 25, 31])
def test_data_move_whole_and_stay_aligned(tmp_path: Path, length: int) -> None:
    """In several pieces, by as much as any metadata need."""
    path = tmp_path / "plain.gguf"
    writer = gguf.GGUFWriter(path, "x")
    writer.kv_data[0].clear()
    weights = np.arange(2_500_000, dtype=np.float32).reshape(500, 5000)
    writer.add_tensor("a.weight", weights)
    writer.add_tensor("b.weight", weights[:3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    note = "grün " + "x" * length
    stamp(path, {"general.note": note, "b": ""})
    told = texts(path)
    assert (told["general.note"], told["b"]) == (note, "")
    first, second = (t.data for t in gguf.GGUFReader(path).tensors)
    assert np.array_equal(first, weights)
    assert np.array_equal(second, weights[:3])
    assert read_header(path).size == path.stat().st_size


def test_what_cannot_be_converted_is_refused(model: Path, tmp_path: Path) -> None:
    """In one line, with what to do; nothing is written."""
    text, there = tmp_path / "notes.gguf", tmp_path / "there.gguf"
    text.write_text("no model")
    there.write_bytes(b"x")
    before = sorted(tmp_path.iterdir())
    new = tmp_path / "new.gguf"
    for arguments, words in [
        ((model, new, "--type", "q9"), "choose one of f32, f16, bf16, q8_0"),
        ((model, new, "--type", "q8_0", "--rules", "a(=q8_0"), "no regular expression"),
        ((model, model, "--type", "q8_0", "--force"), "would replace what it is made from"),
        ((model, there, "--type", "q8_0"), "it exists already; --force"),
        ((text, new, "--type", "q8_0"), "not a model"),
        ((model, tmp_path / "no" / "new.gguf", "--type", "q8_0"), "there is no folder"),
        ((model, tmp_path / "new.safetensors", "--type", "q8_0"), "ends in .gguf"),
    ]:
        fails_in_one_line(cli("convert", *arguments), words)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("rules", ["q8_0", "=q8_0", "a=", "a=q9", "a=f16,", "[=f16"])
def test_wrong_rules(rules: str) -> None:
    with pytest.raises(InvalidRequest, match="rules: "):
        checked_rules(rules)


def test_too_little_room(model: Path, tmp_path: Path) -> None:
    order = ordered(model, tmp_path / "new.gguf", "f32")
    with pytest.raises(DiskFull, match="43 MB are needed and 5 MB are free"):
        require_room(order, lambda folder: 5_000_000)
    with pytest.raises(InsufficientMemory, match="needs 43 MB of memory"):
        require_room(order, memory=40_000_000)


def test_what_a_killed_conversion_left_goes_with_the_next(model: Path, tmp_path: Path) -> None:
    """But not what another one writes now, to which the target is lost meanwhile."""
    order, other = (ordered(model, tmp_path / name, "f16") for name in ("new.gguf", "other.gguf"))
    before = sorted(tmp_path.iterdir())
    for name in (".new.gguf", ".dead.gguf"):
        (tmp_path / f"{name}.part").touch()
        (tmp_path / f"{name}.converting").touch()
    with replacing(other.target) as partial:
        partial.touch()
        with pytest.raises(ModelBusy, match="another conversion"), replacing(other.target):
            pass
        assert sorted(tmp_path.iterdir()) == sorted([*before, partial, partial.with_suffix(".converting")])
        with replacing(order.target) as own:
            own.touch()
        assert partial.is_file()
    assert sorted(tmp_path.iterdir()) == sorted([*before, order.target, other.target])


def test_the_size_is_known_beforehand(model: Path, f16: Path) -> None:
    estimated = converted_bytes(read_header(model), "f16")
    assert estimated == pytest.approx(f16.stat().st_size, rel=0.02)
    assert all(converted_bytes(read_header(model), kind) > 0 for kind in TYPES)


def test_a_file_without_its_parts_is_converted_unchecked(f16: Path, tmp_path: Path) -> None:
    alone, target = tmp_path / "alone.gguf", tmp_path / "result.gguf"
    os.link(f16, alone)
    run = cli("convert", alone, target, "--type", "q8_0")
    assert run.returncode == 0, run.stderr
    assert "pictures were not compared: this ovis-image model lacks an image decoder" in run.stdout
    assert target.is_file()


def test_ctrl_c_leaves_nothing(f16: Path, tmp_path: Path) -> None:
    """Whatever it is doing; the file that was there stays."""
    target = tmp_path / "new.gguf"
    target.write_bytes(b"old")
    command = [sys.executable, "-m", "gguf_imagegen", "convert", str(f16), str(target), "--type", "f32"]
    process = subprocess.Popen([*command, "--force"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline()
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + DEADLINE
    _, rest = process.communicate(timeout=deadline - time.monotonic())
    assert process.returncode == 130, rest
    assert "stopped; nothing was written" in rest
    assert [path.name for path in tmp_path.iterdir()] == ["new.gguf"]
    assert target.read_bytes() == b"old"
