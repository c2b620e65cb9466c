"""The command line as a user runs it: real processes, real files, exit codes and words."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.core import TyperGroup
from typer.main import get_command

from gguf_imagegen import __version__
from gguf_imagegen.catalog import quants
from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.commands.cli import app
from gguf_imagegen.commands.inspect import list_models, models_table
from gguf_imagegen.machine.memory import Available
from gguf_imagegen.pictures.decode import read_parameters
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import LoadSpec
from tests.broken_files import BROKEN
from tests.weights import write_lora


def cli(*arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gguf_imagegen", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "COLUMNS": "200", **env}, capture_output=True, text=True, timeout=120
    )


def generate(model_dir: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return cli("generate", "--models-dir", model_dir, "--model", "test", *arguments)


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def fails_in_one_line(run: subprocess.CompletedProcess[str], words: str) -> None:
    assert run.returncode == 1, run.stderr
    assert run.stdout == ""
    (line,) = run.stderr.splitlines()
    assert line.startswith("gguf-imagegen: ")
    assert words in line


@pytest.mark.parametrize(("suffix", "format"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP")])
def test_generate(suffix: str, format: str, model_dir: Path, tmp_path: Path) -> None:
    """The file has the format of its name and the size asked for; its text has prompt, steps and seed."""
    out = tmp_path / "new folder" / f"fox.{suffix}"
    varied = ("--variation-strength", "0.2", "--variation-seed", "9")
    run = generate(model_dir, "a fox", "--steps", "2", "--seed", "7", "--size", "96x64", *varied, "-o", out)
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{out}\n"
    assert "seed 7, variation seed 9" in run.stderr
    with Image.open(out) as image:
        assert (image.format, image.size) == (format, (96, 64))
    parameters = read_parameters(out.read_bytes()) or ""
    assert parameters.startswith("a fox")
    assert "Steps: 2" in parameters
    assert "Seed: 7" in parameters
    assert "Variation seed: 9, Variation seed strength: 0.2" in parameters


def test_a_seed_repeats_and_n_counts_on(model_dir: Path, tmp_path: Path) -> None:
    """Several images get numbered names; image k of seed s is the image of seed s + k, to the byte."""
    several, single = tmp_path / "fox.png", tmp_path / "one.png"
    run = generate(
        model_dir, "a fox", "--steps", "1", "--seed", "7", "--n", "2", "--size", "64x64", "-o", several
    )
    assert run.returncode == 0, run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox-0.png", "fox-1.png"]
    assert generate(
        model_dir, "a fox", "--steps", "1", "--seed", "8", "--size", "64x64", "-o", single
    ).returncode == 0  # fmt: skip
    assert single.read_bytes() == (tmp_path / "fox-1.png").read_bytes()
    assert (pixels(tmp_path / "fox-0.png") != pixels(single)).any()


def test_an_edit_repaints_the_mask_only(model_dir: Path, tmp_path: Path) -> None:
    """What is black in the mask stays as it was, to the byte; what is white changes."""
    image, mask, out = (tmp_path / name for name in ("image.png", "mask.png", "out.png"))
    Image.new("RGB", (128, 64), (200, 30, 30)).save(image)
    half = Image.new("L", (128, 64), 0)
    half.paste(255, (64, 0, 128, 64))
    half.save(mask)
    run = generate(
        model_dir, "a fox", "--image", image, "--mask", mask, "--strength", "1", "--steps", "2",
        "--seed", "1", "--size", "128x64", "-o", out,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    made = pixels(out)
    assert made.shape == (64, 128, 3)
    assert (made[:, :64] == (200, 30, 30)).all()
    assert (made[:, 64:] != (200, 30, 30)).any(axis=-1).mean() > 0.5


def test_image_to_image_stays_near(model_dir: Path, tmp_path: Path) -> None:
    """Little strength keeps the image's colour, and its aspect when no size is given."""
    image, out = tmp_path / "image.png", tmp_path / "out.png"
    Image.new("RGB", (200, 100), (200, 30, 30)).save(image)
    run = generate(
        model_dir, "x", "--image", image, "--strength", "0.1", "--steps", "2", "--seed", "1", "-o", out
    )
    assert run.returncode == 0, run.stderr
    made = pixels(out)
    assert made.shape[1] == pytest.approx(2 * made.shape[0], rel=0.2)
    assert made.mean(axis=(0, 1)) == pytest.approx((200, 30, 30), abs=40)


@pytest.mark.parametrize("name", ["generate", "tune"])
def test_what_a_model_is_loaded_with_is_a_flag(name: str) -> None:
    """Of each command that loads one: what a card needs for a model, all of them need."""
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    flags = {parameter.name for parameter in group.commands[name].params}
    assert set(LoadSpec.__struct_fields__) & set(Settings.model_fields) <= flags


def test_loras_are_named_in_the_prompt(model_dir: Path, tmp_path: Path) -> None:
    """A tag applies a LoRA of the folder; one that does not fit the model, or is unknown, is refused."""
    loras, plain, out = tmp_path / "loras", tmp_path / "plain.png", tmp_path / "out.png"
    loras.mkdir()
    write_lora(loras / "bright.gguf")
    write_lora(loras / "misfit.gguf", target="input_blocks.4.1.proj_in")
    flags = ("--steps", "1", "--seed", "1", "--size", "64x64", "--lora-dir", loras)
    assert generate(model_dir, "a fox", *flags, "-o", plain).returncode == 0
    run = generate(model_dir, "a fox<lora:bright:2>", *flags, "-o", out)
    assert run.returncode == 0, run.stderr
    assert (pixels(out) != pixels(plain)).any()
    assert "note:" not in run.stderr
    fails_in_one_line(generate(model_dir, "a fox<lora:misfit>", *flags, "-o", out), "tensors fit tiny-random")
    fails_in_one_line(generate(model_dir, "a fox<lora:brigth>", *flags, "-o", out), "did you mean 'bright'?")


def test_a_named_quantisation_is_made_with(model_dir: Path, tmp_path: Path) -> None:
    """Though another one is on disk and stands before it."""
    (tmp_path / "bad.gguf").write_bytes(b"no header")
    for name in ("tiny-random.gguf", "tiny-random-tae.gguf"):
        shutil.copy(model_dir / name, tmp_path)
    quants = {"Q8_0": {"file": "bad.gguf"}, "Q4_0": {"file": "tiny-random.gguf"}}
    files = {"taesd": "tiny-random-tae.gguf"}
    entry = {"family": "ovis-image", "files": files, "quants": quants}
    (tmp_path / "two.yaml").write_text(json.dumps({"version": 1, "models": {"two": entry}}))
    flags = ("--models-dir", tmp_path, "--catalog", tmp_path / "two.yaml", "--steps", "1", "--size", "64x64")
    fails_in_one_line(cli("generate", "x", "--model", "two", *flags, "-o", tmp_path / "x.png"), "bad.gguf")
    run = cli("generate", "x", "--model", "two:Q4_0", *flags, "-o", tmp_path / "x.png")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("fault", ["truncated data", "text file", "huge kv count"])
def test_a_bad_model_file_ends_in_one_line(fault: str, model_dir: Path, tmp_path: Path) -> None:
    """Exit code 1, the bare file name, no traceback, and no picture."""
    bad, out = tmp_path / "bad.gguf", tmp_path / "out.png"
    bad.write_bytes(BROKEN[fault]((model_dir / "tiny-random.gguf").read_bytes()))
    run = cli("generate", "--model", bad, "a fox", "-o", out)
    fails_in_one_line(run, "bad.gguf: ")
    assert str(tmp_path) not in run.stderr
    assert not out.exists()


def test_a_missing_component_ends_in_one_line(model_dir: Path, tmp_path: Path) -> None:
    """Without its decoder beside it the model names the flag; with the flag it runs."""
    model, out = tmp_path / "alone.gguf", tmp_path / "out.png"
    shutil.copy(model_dir / "tiny-random.gguf", model)
    fails_in_one_line(cli("generate", "--model", model, "a fox", "-o", out), "--component vae=FILE")
    component = f"taesd={model_dir / 'tiny-random-tae.gguf'}"
    run = cli(
        "generate", "--model", model, "--component", component, "a fox", "--size", "64x64", "--steps", "1",
        "-o", out,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a fox", "-o", "out.gif"], "output_format: "),
        (["a fox", "--steps", "9999"], "steps: "),
        (["a fox", "--sampler", "eulr_a"], "did you mean 'euler_a'?"),
        (["a fox", "--size", "9x99"], "too narrow"),
        ([" "], "prompt: is required"),
    ],
)
def test_wrong_requests_end_in_one_line(arguments: list[str], words: str, model_dir: Path) -> None:
    """The command line says what the server would say."""
    fails_in_one_line(generate(model_dir, *arguments), words)


def test_other_failures_end_in_one_line(model_dir: Path, tmp_path: Path) -> None:
    """An unknown model, one whose files are missing, an unreadable catalog: what to do is said."""
    fails_in_one_line(cli("generate", "--model", "nope", "x"), "Models on this machine: ")
    fails_in_one_line(cli("generate", "--models-dir", tmp_path, "--model", "test", "x"), "make-test-model")
    fails_in_one_line(cli("models", "--catalog", tmp_path / "no.yaml"), "no.yaml: cannot be read")
    fails_in_one_line(cli("serve", "--models-dir", tmp_path, "--model", "test"), "make-test-model")
    fails_in_one_line(
        cli("serve", "--component", "x", "--model", model_dir / "tiny-random.gguf"), "ROLE=FILE"
    )


def test_an_output_that_cannot_be_written_ends_in_words(model_dir: Path, tmp_path: Path) -> None:
    """A file where a folder should be: exit code 1 and no traceback."""
    (tmp_path / "file").write_bytes(b"")
    run = generate(model_dir, "x", "--steps", "1", "--size", "64x64", "-o", tmp_path / "file" / "out.png")
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("gguf-imagegen: ")


def test_models(model_dir: Path, tmp_path: Path) -> None:
    """The table says which models are there; the environment names the folder as well as the flag."""
    run = cli("models", GGUF_IMAGEGEN_MODELS_DIR=str(model_dir))
    assert run.returncode == 0
    (row,) = [line for line in run.stdout.splitlines() if "tiny-random" in line]
    assert "yes" in row
    arrived = tmp_path / ".state/gpustack/stable-diffusion-v1-5-GGUF/stable-diffusion-v1-5-Q4_0.gguf"
    arrived.parent.mkdir(parents=True)
    arrived.with_name(f"{arrived.name}.{'ab' * 8}.partial").write_bytes(b"x")
    rows = cli("models", "--models-dir", tmp_path).stdout.splitlines()
    (row,) = [line for line in rows if "tiny-random" in line]
    assert "yes" not in row
    (row,) = [line for line in rows if line.startswith("sd-1.5 ")]
    assert "partial: Q4_0" in row


def test_models_in_a_pipe_are_whole(tmp_path: Path) -> None:
    """One line a model whatever the width: the id first, the description to its end."""
    catalog = load_catalog(tmp_path)
    heading, *rows = cli("models", "--models-dir", tmp_path, COLUMNS="80").stdout.splitlines()
    assert heading.split() == ["id", "on", "disk", "size", "fits", "description"]
    assert [row.split()[0] for row in rows] == [entry.id for entry in catalog.entries]
    for row, entry in zip(rows, catalog.entries, strict=True):
        assert entry.description in row
    (turbo,) = [row for row in rows if row.startswith("sd-turbo ")]
    assert "2.0 GB" in turbo
    assert any("It cannot be run." in row for row in rows)


def test_models_on_a_terminal_have_whole_ids(tmp_path: Path) -> None:
    """At 80 columns the descriptions wrap, and the ids do not."""
    listed = list_models(Settings(models_dir=tmp_path))
    console = Console(file=io.StringIO(), width=80)
    console.print(models_table(listed))
    assert isinstance(console.file, io.StringIO)
    rows = console.file.getvalue().splitlines()
    assert {model.id for model in listed} <= {row.split()[0] for row in rows if not row.startswith(" ")}
    assert "…" not in console.file.getvalue()
    assert max(map(len, rows)) <= 80


def test_models_for_programs(model_dir: Path) -> None:
    """The table's content, with aliases and every quantisation; what is not known is null."""
    models = {
        model["id"]: model for model in json.loads(cli("models", "--json", "--models-dir", model_dir).stdout)
    }
    assert list(models) == [entry.id for entry in load_catalog(model_dir).entries]
    tiny, many = models["tiny-random"], models["sd-1.5"]
    assert (tiny["on_disk"], tiny["fits"], tiny["aliases"]) == (True, True, ["test"])
    assert tiny["bytes"] == sum(file.stat().st_size for file in model_dir.glob("*.gguf"))
    assert [quant["name"] for quant in many["quants"]] == [
        "sd-1.5:Q8_0", "sd-1.5:Q4_1", "sd-1.5:Q4_0", "sd-1.5:FP16",
    ]  # fmt: skip
    assert many["quants"][1]["bytes"] is None
    assert many["quants"][1]["fits"] is None
    same = ("name", "on_disk", "state", "bytes", "fits")
    assert {key: many[key] for key in same} in [{key: each[key] for key in same} for each in many["quants"]]


GIB = 1024**3


@pytest.mark.parametrize(("free", "name"), [(64 * GIB, "Q8_0"), (17 * GIB, "Q4_K"), (GIB, "Q2_K")])
def test_the_size_is_that_of_what_fits(
    free: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest quantisation that fits, and the smallest where none does."""
    monkeypatch.setattr(quants, "available", lambda: Available(free))
    (model,) = [each for each in list_models(Settings(models_dir=tmp_path)) if each.id == "flux.1-schnell"]
    assert model.name == f"flux.1-schnell:{name}"
    assert model.fits == (free > GIB)


def test_catalog_check_counts_models_and_quantisations() -> None:
    """Two numbers, each by its name."""
    entries = load_catalog(Path("/nowhere"))
    quants = sum(len(entries.quants(entry.id)) for entry in entries.entries)
    words = f"{len(entries.entries)} models in {quants} quantisations, 0 faults"
    assert cli("catalog", "check").stdout.splitlines()[-1] == words


def test_doctor(model_dir: Path) -> None:
    """All is well here: exit code 0, and the backend that really computes is named."""
    run = cli("doctor", "--models-dir", model_dir)
    assert run.returncode == 0, run.stdout
    found = {line[6:].split()[0]: line for line in run.stdout.splitlines()}
    assert found["backend"].startswith("ok")
    assert "devices: " in found["backend"]
    assert metadata.version("stable-diffusion-cpp-python") in found["engine"]
    assert "tiny-random" in found["models"]
    assert "FAULT" not in run.stdout


def test_doctor_finds_a_fault(tmp_path: Path) -> None:
    """A catalog that does not load is a fault: exit code 1."""
    (tmp_path / "c.yaml").write_text("version: 3")
    run = cli("doctor", "--catalog", tmp_path / "c.yaml")
    assert run.returncode == 1
    assert "FAULT models" in run.stdout


def test_make_test_model(tmp_path: Path, model_dir: Path) -> None:
    """Writes the two files, prints their names, and they are those of the tests."""
    run = cli("make-test-model", tmp_path / "new")
    assert run.returncode == 0, run.stderr
    names = ("tiny-random.gguf", "tiny-random-tae.gguf")
    assert run.stdout.splitlines() == [str(tmp_path / "new" / name) for name in names]
    for name in names:
        assert (tmp_path / "new" / name).read_bytes() == (model_dir / name).read_bytes()
    assert cli("make-test-model", tmp_path, "--size", "huge").returncode == 2


def test_version_and_help() -> None:
    """--version prints the version alone; no command at all is a helping hand."""
    run = cli("--version")
    assert (run.returncode, run.stdout) == (0, f"{__version__}\n")
    assert __version__ == metadata.version("gguf-imagegen")
    run = cli("--help")
    assert run.returncode == 0
    for command in ("serve", "generate", "models", "doctor", "make-test-model"):
        assert command in run.stdout


@pytest.mark.parametrize("command", ["serve", "generate", "tune", "inspect", "doctor"])
def test_help_names_one_variable_a_flag(command: str) -> None:
    """Whole at 80 columns: those of all commands by their own name, others with the command's."""
    said = cli(command, "--help", COLUMNS="80").stdout
    assert "…" not in said
    options = re.split(r"\n  (?=-)", said)[1:]
    for option in options:
        flag = re.findall(r"--([a-z-]+)", option)[0]
        name = flag.replace("-", "_")
        own = name in Settings.model_fields
        variable = f"GGUF_IMAGEGEN_{name}" if own else f"GGUF_IMAGEGEN_{command}_{name}"
        expected = [] if flag == "help" else [variable.upper()]
        assert re.findall(r"GGUF_IMAGEGEN_\w+", option) == expected


def test_the_documented_variables_work(model_dir: Path, tmp_path: Path) -> None:
    """Those of all commands, and a command's own; one with both names is none."""
    env = {
        "GGUF_IMAGEGEN_GENERATE_STEPS": "1", "GGUF_IMAGEGEN_GENERATE_SIZE": "64x64",
        "GGUF_IMAGEGEN_GENERATE_MODEL": "nope",
    }  # fmt: skip
    out = tmp_path / "out.png"
    run = cli("generate", "--models-dir", model_dir, "x", "-o", out, GGUF_IMAGEGEN_MODEL="test", **env)
    assert run.returncode == 0, run.stderr
    assert "Steps: 1," in (read_parameters(out.read_bytes()) or "")
    run = cli("inspect", model_dir / "tiny-random.gguf", GGUF_IMAGEGEN_INSPECT_JSON="1")
    assert json.loads(run.stdout)["files"][0]["family"] == "ovis-image"


def test_the_version_is_not_asked_by_the_environment(model_dir: Path) -> None:
    """A variable of that name, as containers have it, changes nothing."""
    run = cli("doctor", "--models-dir", model_dir, GGUF_IMAGEGEN_VERSION="1")
    assert "backend" in run.stdout
    assert "GGUF_IMAGEGEN_VERSION" not in cli("--help").stdout


def test_serve_on_a_used_port(model_dir: Path) -> None:
    """The port belongs to somebody else: exit code 1, the address and the reason, no traceback."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        run = cli("serve", "--models-dir", model_dir, "--model", "test", "--port", str(port))
    assert run.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in run.stderr
    assert "in use" in run.stderr
    assert "Traceback" not in run.stderr
