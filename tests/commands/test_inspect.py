"""`inspect` as a user runs it: files here, models of the catalog, files on the web."""

from __future__ import annotations

import json
import struct
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gguf_imagegen.modelfiles.header import read_header
from gguf_imagegen.modelfiles.inspect import DIFFUSION
from tests.broken_files import BROKEN
from tests.commands.test_cli import cli, fails_in_one_line
from tests.conftest import RunningApp
from tests.hub import HubServer, write_catalog
from tests.weights import write_safetensors

TOKENS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
FLUX = f"{DIFFUSION}double_blocks.0.img_attn.qkv.weight"


def inspect(*arguments: str | Path, **env: str) -> dict[str, Any]:
    run = cli("inspect", "--json", *arguments, **env)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert isinstance(found, dict)
    return found


def model(path: Path, names: list[str], *, kind: int = 0, size: int = 0) -> Path:
    """A GGUF of holes with tensors of 32 numbers of these names, `size` bytes long."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(names), 0))
        for number, name in enumerate(names):
            file.write(struct.pack("<Q", len(name)) + name.encode())
            file.write(struct.pack("<IQIQ", 1, 32, kind, 128 * number))
        file.truncate(max(size, file.tell() + 128 * len(names) + 32))
    return path


def test_a_file_for_programs(model_dir: Path) -> None:
    """The JSON has what the header says, and what is needed besides."""
    path = model_dir / "tiny-random.gguf"
    header = read_header(path)
    found = inspect(path)
    (file,) = found["files"]
    assert sum(file.pop("quantization").values()) == pytest.approx(1, abs=0.001)
    assert file == {
        "name": "tiny-random.gguf",
        "remote": False,
        "format": "gguf",
        "family": "ovis-image",
        "component": "model",
        "size": path.stat().st_size,
        "tensors": len(header.tensors),
        "parameters": header.parameters,
    }
    assert found["needs"] == ["an image decoder (VAE) (--component vae=FILE)"]
    assert found["notes"] == []


def test_a_model_of_the_catalog_for_people(model_dir: Path) -> None:
    """All files of a model in tables; a whole set needs nothing more."""
    run = cli("inspect", "test", "--models-dir", model_dir)
    assert run.returncode == 0, run.stderr
    for words in ("tiny-random.gguf", "tiny-random-tae.gguf", "ovis-image", "taesd", "Q8_0 ", "million"):
        assert words in run.stdout
    assert "needs" not in run.stdout


def test_a_huge_file_costs_nothing(tmp_path: Path) -> None:
    """Ten gigabytes with 2,000 tensors: only the header is read."""
    names = [FLUX, *(f"{DIFFUSION}double_blocks.0.{number}" for number in range(1999))]
    found = inspect(model(tmp_path / "huge.gguf", names, size=10_000_000_000))
    (file,) = found["files"]
    assert (file["tensors"], file["family"], file["size"]) == (2000, "flux", 10_000_000_000)
    assert [need.split("--component ")[1] for need in found["needs"]] == [
        "clip_l=FILE)", "t5xxl=FILE)", "vae=FILE)",
    ]  # fmt: skip


def test_encoders_that_must_be_renamed_are_noted(tmp_path: Path) -> None:
    """A FLUX file whose encoders the engine would pass over says so, and they count as missing."""
    path = model(tmp_path / "old.gguf", [FLUX, TOKENS])
    found = inspect(path)
    assert "CLIP-L" in found["needs"][0]
    assert "rename: text-encoders" in found["notes"][0]


def test_what_this_server_cannot_use_is_noted(tmp_path: Path) -> None:
    """A family that it cannot run, and a file of no known kind."""
    video = model(tmp_path / "video.gguf", [f"{DIFFUSION}blocks.0.cross_attn.norm_k.weight"])
    assert "video.gguf: it is Wan, which makes videos" in inspect(video)["notes"][0]
    strange = inspect(model(tmp_path / "strange.gguf", ["x"]))
    assert (strange["needs"], strange["files"][0]["component"]) == ([], "unknown")
    assert "unknown file type" in strange["notes"][0]


@pytest.mark.parametrize("fault", ["text file", "truncated data", "zero length"])
def test_broken_files(fault: str, model_dir: Path, tmp_path: Path) -> None:
    """A broken file is one line with its bare name."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(BROKEN[fault]((model_dir / "tiny-random.gguf").read_bytes()))
    run = cli("inspect", path)
    fails_in_one_line(run, "broken.gguf")
    assert str(tmp_path) not in run.stderr


def test_what_is_not_there(tmp_path: Path) -> None:
    """No such file, no such model, and a model of which nobody knows where it is."""
    fails_in_one_line(cli("inspect", tmp_path / "absent.gguf"), "cannot be read")
    fails_in_one_line(cli("inspect", "unheard-of"), "there is no model 'unheard-of'")
    fails_in_one_line(cli("inspect", "tiny-random", "--models-dir", tmp_path), "not on this machine")


class _Ranges(SimpleHTTPRequestHandler):
    """Sends the part that is asked for, and nothing else: one without a range would be refused."""

    def do_GET(self) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        path = Path(self.directory) / self.path.split("/")[-1]
        with path.open("rb") as file:
            file.seek(first)
            part = file.read(last - first + 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{path.stat().st_size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, format: str, *args: object) -> None:
        """Tests print nothing."""


@pytest.fixture
def web(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web server with the tiny model's files, and a FLUX whose encoders must be renamed."""
    folder = tmp_path_factory.mktemp("web")
    for path in model_dir.glob("*.gguf"):
        (folder / path.name).symlink_to(path)
    model(folder / "old.gguf", [FLUX, TOKENS, "cond_stage_model.1.transformer.shared.weight", "vae.x"])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(10)


def test_a_file_on_the_web(web: str, model_dir: Path) -> None:
    """A web address is inspected like a file, but for the word that it is remote."""
    (here,) = inspect(model_dir / "tiny-random.gguf")["files"]
    (there,) = inspect(f"{web}/owner/repo/resolve/main/tiny-random.gguf")["files"]
    assert there == {**here, "remote": True}


def test_a_model_that_is_not_here_is_inspected_on_the_hub(web: str, model_dir: Path, tmp_path: Path) -> None:
    """Of a catalog entry, what is on this machine is read here, and the rest at the hub."""
    entry = {
        "family": "ovis-image",
        "repo": "owner/repo",
        "quants": {"Q8_0": {"file": "tiny-random.gguf"}, "Q4_0": {"file": "none.gguf"}},
        "files": {"taesd": "tiny-random-tae.gguf"},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"version": 1, "models": {"mine": entry}}))
    tae = tmp_path / "tiny-random-tae.gguf"
    tae.write_bytes((model_dir / tae.name).read_bytes())
    found = inspect("mine:Q8_0", "--catalog", tmp_path / "my.yaml", "--models-dir", tmp_path, HF_ENDPOINT=web)
    assert [(file["name"], file["remote"]) for file in found["files"]] == [
        ("tiny-random.gguf", True),
        ("tiny-random-tae.gguf", False),
    ]
    assert found["needs"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.yaml", tae.name]  # nothing was kept


def test_a_model_that_pull_will_rename_lacks_nothing(web: str, tmp_path: Path) -> None:
    """What the catalog says is to be renamed is judged by the names that it will have."""
    source = {"repo": "owner/repo", "file": "old.gguf", "rename": "text-encoders"}
    entry = {"family": "flux", "files": {"model": source}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump({"version": 1, "models": {"mine": entry}}))
    found = inspect("mine", "--catalog", tmp_path / "my.yaml", "--models-dir", tmp_path, HF_ENDPOINT=web)
    assert (found["needs"], found["notes"]) == ([], [])


def test_a_model_that_cannot_be_run_says_why() -> None:
    """There are no files to tell of, and the reason is told."""
    run = cli("inspect", "sdxl-refiner")
    assert run.returncode == 0
    assert "sdxl-refiner cannot be run: sd.cpp does not know" in " ".join(run.stdout.split())


def test_a_gated_model_says_where_to_accept_its_licence(tmp_path: Path) -> None:
    """The page is named, as `pull` does."""
    with HubServer() as hub:
        source = hub.add("org/secret", "s.gguf", b"x" * 100)
        hub.repos["org/secret"].gated = True
        catalog = write_catalog(tmp_path / "my.yaml", secret={"quants": {"Q8_0": source}})
        run = cli("inspect", "secret", "--catalog", catalog, "--models-dir", tmp_path, HF_ENDPOINT=hub.url)
    fails_in_one_line(run, "https://huggingface.co/org/secret is gated: accept its licence there")


def test_help_names_the_commands() -> None:
    """Both commands are found by who asks for help."""
    run: subprocess.CompletedProcess[str] = cli("--help")
    assert "inspect" in run.stdout
    assert "catalog" in run.stdout


async def test_scaled_fp8_is_refused_alike_everywhere(running: RunningApp, tmp_path: Path) -> None:
    """By `inspect`, `serve`, `generate` and the API, in the same words and before a load."""
    types = {FLUX: "F8_E4M3", FLUX.replace("weight", "scale_weight"): "F32"}
    tensors = {name: np.zeros(4, np.uint8) for name in types}
    path = write_safetensors(tmp_path / "scaled.safetensors", tensors, types)
    words = "scaled.safetensors: its weights are scaled FP8, which the engine cannot read; take a GGUF"
    for command in (("inspect", path), ("serve", "--model", path), ("generate", "--model", path, "a fox")):
        fails_in_one_line(cli(*command), words)
    entry = {"family": "flux", "files": {"model": str(path)}}
    (tmp_path / "c.yaml").write_text(json.dumps({"version": 1, "models": {"scaled": entry}}))
    async with running(catalog=tmp_path / "c.yaml") as app:
        status, body = await app.post("/v1/images/generations", prompt="a fox", model="scaled")
    assert (status, body["error"]["code"]) == (400, "invalid_model_file")
    assert words in body["error"]["message"]
