"""Models in the folders of other programs, and in folders as diffusers writes them."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest

from gguf_imagegen.catalog.default_model import choose_models, known_models
from gguf_imagegen.catalog.tree import entry_of_folder, models_in
from gguf_imagegen.commands.doctor import examine
from gguf_imagegen.engines.sdcpp.paths import path_fields
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidModelFile
from tests.conftest import RunningApp

pytestmark = pytest.mark.posix

UNET = {
    "conv_in.weight": [320, 4, 3, 3],
    "down_blocks.0.resnets.0.conv1.weight": [320, 320, 3, 3],
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": [320, 768],
}
VAE = {"decoder.conv_in.weight": [512, 4, 3, 3]}
CLIP = {"text_model.encoder.layers.0.self_attn.k_proj.weight": [768, 768]}


def safetensors(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A sparse file of F16 tensors."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return path


def diffusers(folder: Path) -> Path:
    """Stable Diffusion 1 as diffusers saves it."""
    safetensors(folder / "unet/diffusion_pytorch_model.safetensors", UNET)
    safetensors(folder / "vae/diffusion_pytorch_model.safetensors", VAE)
    safetensors(folder / "text_encoder/model.safetensors", CLIP)
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def comfy(tmp_path: Path, model_dir: Path) -> Path:
    """A tree of ComfyUI; the names of files say nothing right."""
    root = tmp_path / "ComfyUI" / "models"
    for name, place in (("tiny-random", "checkpoints/some thing.gguf"), ("tiny-random-tae", "vae/b.gguf")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(model_dir / f"{name}.gguf", root / place)
    safetensors(root / "vae/wrong.safetensors", VAE)
    (root / "checkpoints/page.safetensors").write_text("<html>")
    (root / "unet").mkdir()
    os.mkfifo(root / "unet/pipe.gguf")
    (root / "loop").symlink_to(root)
    diffusers(root / "diffusers" / "sd15")
    return root


async def test_a_tree_is_served_where_it_lies(comfy: Path, running: RunningApp) -> None:
    """Found by header with the decoder that fits, listed as ready, and drawn by the real engine."""
    before = sorted(path.name for path in comfy.rglob("*"))
    async with running(models_from=comfy) as app:
        listed = {model["id"] for model in (await app.get("/v1/models"))[1]["data"]}
        assert {"some-thing", "sd15"} <= listed
        body = {"model": "some-thing", "prompt": "a cat", "size": "64x64", "steps": 1}
        status, answer = await app.post("/v1/images/generations", **body)
        assert status == 200, answer
    assert sorted(path.name for path in comfy.rglob("*")) == before


def test_links_keep_their_names(comfy: Path, tmp_path: Path) -> None:
    """As the hub's cache has them, whose blobs have no suffix."""
    blob = (comfy / "vae/b.gguf").rename(tmp_path / "0123456789abcdef")
    (comfy / "vae/b.gguf").symlink_to(blob)
    found = {entry.id: entry for entry in models_in(comfy, ())}
    assert found["some-thing"].files["taesd"] == comfy / "vae/b.gguf"


def test_what_lacks_a_part_says_so(comfy: Path) -> None:
    """A decoder of another family does not count."""
    (comfy / "vae/b.gguf").unlink()
    found = {entry.id: entry for entry in models_in(comfy, ())}
    assert found["some-thing"].unsupported == "it lacks an image decoder (VAE)"


def test_what_cannot_be_used_is_said_once(
    comfy: Path, model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file with its fault, in the server's log and by the doctor."""
    (comfy / "checkpoints/page.safetensors").write_text("<!DOCTYPE html><html></html>")
    shutil.copy(comfy / "vae/b.gguf", comfy / "vae/c.gguf")
    (comfy / "vae/c.gguf").write_bytes((comfy / "vae/b.gguf").read_bytes()[:5000])
    (comfy / "flux").mkdir()
    (comfy / "flux/model_index.json").write_text("{}")
    told: list[str] = []
    settings = Settings(models_dir=model_dir, models_from=comfy)
    known_models(settings, told.append)
    assert [words.partition(":")[0] for words in told] == ["page.safetensors", "c.gguf", "flux"]
    assert str(tmp_path) not in str(told)
    with caplog.at_level("INFO"):
        choose_models(Settings(models_dir=model_dir, models_from=comfy, model="some-thing"))
    assert caplog.messages == [f"not used of --models-from: {words}" for words in told]
    assert [each.words for each in examine(settings) if each.name == "models-from"] == [
        f"not used: {words}" for words in told
    ]


def test_names_that_are_taken(comfy: Path, model_dir: Path) -> None:
    """A file named like a model of the catalog is another model."""
    shutil.copy(model_dir / "tiny-random.gguf", comfy / "checkpoints/sd-turbo.gguf")
    catalog = known_models(Settings(models_dir=model_dir, models_from=comfy))
    assert catalog.get("checkpoints-sd-turbo").family == "ovis-image"
    assert catalog.get("sd-turbo").family != "ovis-image"


def test_a_folder_of_diffusers(tmp_path: Path, model_dir: Path) -> None:
    """It is a model with its parts; the engine is given the folder, as its loader wants it."""
    folder = diffusers(tmp_path / "my model")
    catalog, name = choose_models(Settings(models_dir=model_dir, model=str(folder)))
    entry = catalog.get(name)
    assert (entry.id, entry.family) == ("my-model", "sd1")
    assert path_fields(catalog.paths(entry)) == {"model_path": folder}
    other = {**catalog.paths(entry), "vae": tmp_path / "mine.safetensors"}
    assert path_fields(other) == {"model_path": folder, "vae_path": tmp_path / "mine.safetensors"}


def test_a_folder_of_one_model(tmp_path: Path, model_dir: Path) -> None:
    """The file with its parts beside it."""
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(model_dir / "tiny-random.gguf", folder / "a.gguf")
    shutil.copy(model_dir / "tiny-random-tae.gguf", folder / "z.gguf")
    assert entry_of_folder(folder).files == {"model": folder / "a.gguf", "taesd": folder / "z.gguf"}


def test_folders_that_cannot_be_served(tmp_path: Path, comfy: Path, model_dir: Path) -> None:
    """Each says what it holds and what to take."""
    (tmp_path / "flux" / "transformer").mkdir(parents=True)
    (tmp_path / "flux" / "model_index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, words in (
        ("flux", "this diffusers folder has a transformer"),
        ("empty", "no picture model is in this folder"),
        ("ComfyUI", "there are several models"),
    ):
        with pytest.raises(InvalidModelFile, match=words):
            entry_of_folder(tmp_path / name)
