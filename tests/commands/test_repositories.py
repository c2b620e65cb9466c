"""Models that no catalog knows, by the address of their repository: from the name to a picture."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import component_of
from tests.hub import HubServer
from tests.weights import split_gguf

OVIS = [entry.id for entry in load_catalog(Path("none")).entries if entry.family == "ovis-image"]


class Home:
    """A models folder of one's own, and a hub with a repository of the tiny model in it."""

    def __init__(self, folder: Path, hub: HubServer, model_dir: Path) -> None:
        self.hub, self.folder, self.models = hub, folder, folder / "models"
        self.main = (model_dir / "tiny-random.gguf").read_bytes()
        self.tae = (model_dir / "tiny-random-tae.gguf").read_bytes()
        hub.add("someone/Tiny-GGUF", "tiny-Q8_0.gguf", self.main)
        hub.add("someone/Tiny-GGUF", "README.md", b"# Tiny", in_git=True)
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url, "MODELSCOPE_ENDPOINT": hub.url, "COLUMNS": "200",
            "HF_HOME": str(folder / "hf"),
        }  # fmt: skip

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gguf_imagegen", *map(str, words), "--models-dir", str(self.models)]
        return subprocess.run(
            command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )

    def without_components(self) -> Path:
        """A catalog in which no model of the tiny model's family can be pulled."""
        path = self.folder / "bare.yaml"
        models = {name: {"family": "ovis-image", "files": {"model": "x.gguf"}} for name in OVIS}
        path.write_text(yaml.safe_dump({"version": 1, "models": models}))
        return path

    def kept(self) -> dict[str, Any]:
        models: dict[str, Any] = yaml.safe_load((self.models / "models.yaml").read_text())["models"]
        return models


@pytest.fixture
def home(tmp_path: Path, model_dir: Path) -> Iterator[Home]:
    with HubServer() as hub:
        yield Home(tmp_path, hub, model_dir)


def fails(run: subprocess.CompletedProcess[str], words: str) -> None:
    assert run.returncode == 1, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("gguf-imagegen: ")
    assert words in last
    assert "Traceback" not in run.stderr


def test_from_a_name_to_a_picture(home: Home) -> None:
    """One command: the decoder comes from the repository that this one was made from, the engine is real."""
    home.hub.add("someone/Tiny", "vae/tae.gguf", home.tae)
    home.hub.repos["someone/Tiny-GGUF"].tags = ("base_model:quantized:someone/Tiny", "license:mit")
    picture = home.folder / "cat.png"
    words: tuple[str | Path, ...] = (
        "generate",
        "a cat",
        "--size",
        "64x64",
        "--steps",
        "1",
        "-o",
        picture,
        "--yes",
    )
    words = (*words, "--catalog", home.without_components())
    run = home.run(*words, "--model", "hf.co/someone/Tiny-GGUF")
    assert run.returncode == 0, run.stderr
    with Image.open(picture) as made:
        assert made.size == (64, 64)
    assert "licence mit" in run.stderr
    assert list(home.kept()) == ["Tiny-GGUF"]
    asked = len(home.hub.served)
    run = home.run(*words, "--model", "Tiny-GGUF:Q8_0")
    assert run.returncode == 0, run.stderr
    assert len(home.hub.served) == asked


def test_a_pull_shows_and_asks(home: Home) -> None:
    """Files, sizes and the memory are shown; without a terminal and --yes nothing is fetched or kept."""
    home.hub.add("someone/Tiny-GGUF", "tae.gguf", home.tae)
    run = home.run("pull", "someone/Tiny-GGUF:q8_0")
    fails(run, "add --yes")
    assert "tiny-Q8_0.gguf" in run.stderr
    assert "tae.gguf" in run.stderr
    assert "needs about" in run.stderr
    assert not home.models.exists()
    run = home.run("pull", "someone/Tiny-GGUF:q8_0", "--yes")
    assert run.returncode == 0, run.stderr
    folder = home.models / "someone" / "Tiny-GGUF"
    assert (folder / "tiny-Q8_0.gguf").read_bytes() == home.main
    assert "yes " in next(line for line in home.run("models").stdout.splitlines() if "Tiny-GGUF" in line)
    assert "is here" in home.run("pull", "https://huggingface.co/someone/Tiny-GGUF").stderr
    assert home.run("rm", "Tiny-GGUF").returncode == 0
    assert home.run("pull", "Tiny-GGUF").returncode == 0


def test_a_file_by_its_url(home: Home) -> None:
    """The page of a file means this one; it is served under the file's name."""
    for name in ("other-Q4_0.gguf", "tae.gguf"):
        home.hub.add("someone/Tiny-GGUF", name, home.tae if name == "tae.gguf" else home.main)
    run = home.run("pull", f"{home.hub.url}/someone/Tiny-GGUF/blob/main/other-Q4_0.gguf", "--yes")
    assert run.returncode == 0, run.stderr
    assert list(home.kept()) == ["other-Q4_0"]
    assert not (home.models / "someone" / "Tiny-GGUF" / "tiny-Q8_0.gguf").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody/nothing", "the hub has no repository 'nobody/nothing'"),
        ("someone/Tiny-GGUF:Q2_K", "has no quantisation 'Q2_K'; there are: Q8_0"),
        ("someone/Words", "someone/Words has no picture model that this server can run"),
        ("someone/Lora", "it holds: lora"),
        ("http://127.0.0.1:9/someone/Tiny-GGUF", "is no model file or repository of a hub"),
        ("https://example.com/x.gguf", "is no model file or repository of a hub"),
    ],
)
def test_what_cannot_be_pulled(home: Home, name: str, words: str) -> None:
    """In one line: what is there instead, and no other host than a hub's is asked."""
    home.hub.add("someone/Tiny-GGUF", "tae.gguf", home.tae)
    home.hub.add("someone/Words", "README.md", b"# Words")
    lora = b'{"x.lora_up.weight": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}'
    home.hub.add("someone/Lora", "x.safetensors", len(lora).to_bytes(8, "little") + lora + b"12")
    fails(home.run("pull", name, "--yes"), words)
    assert not (home.models / "models.yaml").exists()


def test_a_part_that_is_nowhere(home: Home) -> None:
    """What is missing is named with the flag that gives it; nothing is fetched."""
    run = home.run("pull", "someone/Tiny-GGUF", "--yes", "--catalog", home.without_components())
    fails(run, "lacks an image decoder (VAE), which is neither there nor in the catalog")
    assert "--component vae=FILE" in run.stderr
    assert not home.models.exists()


def test_a_models_folder_that_cannot_be_written(home: Home) -> None:
    """It is named as the reason, with what to do."""
    home.hub.add("someone/Tiny-GGUF", "tae.gguf", home.tae)
    home.models = home.folder / "file" / "models"
    home.models.parent.write_text("")
    fails(home.run("pull", "someone/Tiny-GGUF", "--yes"), "choose another with --models-dir")


def test_modelscope(home: Home) -> None:
    """The same from ModelScope, whose files lie apart; it never sees a token."""
    home.hub.add("someone/Tiny-GGUF", "tae.gguf", home.tae)
    home.env["HF_TOKEN"] = "hf_secretOfATest"
    run = home.run("pull", "modelscope.cn/models/someone/Tiny-GGUF", "--yes")
    assert run.returncode == 0, run.stderr
    assert "https://modelscope.cn/models/someone/Tiny-GGUF" in run.stderr
    folder = home.models / "modelscope.cn" / "someone" / "Tiny-GGUF"
    assert (folder / "tiny-Q8_0.gguf").read_bytes() == home.main
    assert {one.authorization for one in home.hub.served} == {None}
    assert home.run("verify", "Tiny-GGUF").returncode == 0
    fails(
        home.run("pull", "modelscope.cn/models/nobody/nothing", "--yes"), "has no repository 'nobody/nothing'"
    )


def test_a_split_model_is_pulled_whole(home: Home) -> None:
    """By the repository, or by any of its parts; it runs, and the parts are gone."""
    whole, parts = home.folder / "big-Q8_0.gguf", home.folder / "parts"
    whole.write_bytes(home.main)
    parts.mkdir()
    for part in split_gguf(whole, parts, 20):
        home.hub.add("someone/Big-GGUF", part.name, part.read_bytes())
    home.hub.add("someone/Big-GGUF", "tae.gguf", home.tae)
    run = home.run("pull", f"{home.hub.url}/someone/Big-GGUF/blob/main/big-Q8_0-00002-of-00003.gguf", "--yes")
    assert run.returncode == 0, run.stderr
    assert "big-Q8_0-00001-of-00003.gguf and 2 parts" in run.stderr
    folder = home.models / "someone" / "Big-GGUF"
    assert sorted(path.name for path in folder.iterdir()) == ["big-Q8_0.joined.gguf", "tae.gguf"]
    assert list(home.kept()) == ["big-Q8_0"]
    assert home.run("verify", "big-Q8_0").returncode == 0
    picture = home.folder / "cat.png"
    words = ("generate", "a cat", "--size", "64x64", "--steps", "1", "-o", picture, "--model", "big-Q8_0")
    run = home.run(*words)
    assert run.returncode == 0, run.stderr
    assert home.run("rm", "big-Q8_0").returncode == 0
    assert not folder.exists()


def test_a_part_that_is_given(home: Home) -> None:
    """A file of this machine, or of a hub's repository, goes before what would be found; both are kept."""
    here = home.folder / "own-tae.gguf"
    here.write_bytes(home.tae)
    home.hub.add("other/parts", "vae/tae.gguf", home.tae)
    words: tuple[str | Path, ...] = ("--yes", "--catalog", home.without_components())
    role = component_of(read_header(here))
    run = home.run("pull", "someone/Tiny-GGUF", "--component", f"{role}={here}", *words)
    assert run.returncode == 0, run.stderr
    assert "this machine" in run.stderr
    assert home.kept()["Tiny-GGUF"]["files"] == {role: str(here)}
    given = f"{role}=hf.co/other/parts"
    run = home.run("pull", "someone/Tiny-GGUF", "--component", given, *words)
    assert run.returncode == 0, run.stderr
    assert home.kept()["Tiny-GGUF"]["files"][role]["repo"] == "other/parts"
    assert (home.models / "other" / "parts" / "vae" / "tae.gguf").is_file()
    picture = ("generate", "a cat", "--size", "64x64", "--steps", "1", "-o", home.folder / "cat.png", *words)
    asked = len(home.hub.served)
    run = home.run(*picture, "--model", "Tiny-GGUF", "--component", given)
    assert run.returncode == 0, run.stderr
    assert len(home.hub.served) == asked
    run = home.run(*picture, "--model", "Tiny-GGUF", "--component", f"{role}=hf.co/third/parts")
    fails(run, f"was not pulled with {role}=third/parts; do so with: gguf-imagegen pull someone/Tiny-GGUF")


@pytest.mark.parametrize(
    ("component", "words"),
    [
        ("vae=hf.co/someone/Tiny-GGUF", "someone/Tiny-GGUF has no vae; name the file"),
        ("vae=gone.safetensors", "vae=gone.safetensors: no such file"),
        ("vae=hf.co/someone/Tiny-GGUF/tiny-Q8_0.gguf", "tiny-Q8_0.gguf: this is "),
        ("model=hf.co/someone/Tiny-GGUF", "model is the model itself"),
    ],
)
def test_parts_that_cannot_be_given(home: Home, component: str, words: str) -> None:
    """Before anything is fetched or kept."""
    fails(home.run("pull", "someone/Tiny-GGUF", "--yes", "--component", component), words)
    assert not home.models.exists()
