"""LoRAs and the like in a cluster: what only the server or only a node has is named, never passed over."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.api.client import GENERATIONS, SMALL, noise, png
from tests.api.test_loras import RENAMED, UNFIT
from tests.conftest import App
from tests.pool.ray.near import Near, near_cluster
from tests.unet import write_control_net, write_embedding, write_sd1
from tests.weights import write_safetensors, write_upscaler

pytestmark = pytest.mark.posix

CATALOG = """\
version: 1
models:
  sd1:
    family: sd1
    files: {model: sd1.safetensors, taesd: sd1-tae.safetensors}
    defaults: {size: 64x64, steps: 1}
  crippled:
    family: sd1
    files: {model: crippled.safetensors, taesd: sd1-tae.safetensors}
    defaults: {size: 64x64, steps: 1}
"""
PICTURE = base64.b64encode(png(noise(64, 64))).decode()
LORA = {"lora": [{"name": "style"}]}
WISHES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora_dir": ("style.safetensors", LORA),
    "upscaler_dir": ("double.gguf", {"upscale": 2, "upscaler": "double"}),
    "control_dir": ("edges.safetensors", {"control_model": "edges", "control": PICTURE}),
    "embedding_dir": ("easyneg.safetensors", {"prompt": "a cat, embedding:easyneg"}),
}
"""By the setting of a folder: a file of it, and a request for that."""


@pytest.fixture(scope="module")
def addons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind in a folder of its own, for SD1."""
    folder = tmp_path_factory.mktemp("addons")
    for kind in WISHES:
        (folder / kind).mkdir()
    tensors, _ = RENAMED["wrapped"]
    write_safetensors(folder / "lora_dir" / "style.safetensors", tensors)
    write_upscaler(folder / "upscaler_dir" / "double.gguf", 2)
    write_control_net(folder / "control_dir" / "edges.safetensors", alive=False)
    write_embedding(folder / "embedding_dir" / "easyneg.safetensors")
    return folder


@pytest.fixture(scope="module")
def sd1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with SD1, and with one that lacks its middle."""
    folder, other = tmp_path_factory.mktemp("sd1"), tmp_path_factory.mktemp("other")
    write_sd1(other, alive=False, middle=False).rename(folder / "crippled.safetensors")
    write_sd1(folder, alive=False)
    return folder


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG)
    return path


async def ask(app: App, model: str = "sd1", **fields: Any) -> tuple[int, str, list[str]]:
    """Status, what was wrong, and the warnings."""
    status, body = await app.post(GENERATIONS, **{**SMALL, "model": model, **fields})
    return status, body["error"]["message"] if status != 200 else "", body.get("warnings", [])


async def with_node(near: Near, models: Path, **folders: Any) -> None:
    near.node("a", models, "Tells", memory_check="false", **folders)
    await near.ready("a")


@pytest.mark.parametrize("kind", WISHES)
async def test_files_that_only_one_side_has(
    kind: str, addons: Path, sd1: Path, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 400 names the file, the machine that has it or not, and the folder; if both have it, it is used."""
    file, wish = WISHES[kind]
    flag, folder = f"--{kind.replace('_', '-')}", addons / kind
    settings: dict[str, Any] = {"catalog": catalog, "memory_check": False}
    async with near_cluster(monkeypatch, tmp_path, **settings) as near:
        await with_node(near, sd1, **{kind: folder})
        status, words, _ = await ask(near.app, **wish)
        assert status == 400
        assert f"it is in the {flag} of a, and must be in that of the server" in words
    async with near_cluster(monkeypatch, tmp_path, **{**settings, kind: folder}) as near:
        await with_node(near, sd1)
        status, words, _ = await ask(near.app, **wish)
        assert status == 400
        assert f"has the model (a) has the server's {file} in its {flag}" in words
        other = tmp_path / "other"
        other.mkdir()
        (other / file).write_bytes(b"another file")
        near.lose("a")
        await with_node(near, sd1, **{kind: other})
        assert f"has the server's {file}" in (await ask(near.app, **wish))[1]
        near.lose("a")
        copy = tmp_path / "copy"
        copy.symlink_to(folder)
        await with_node(near, sd1, **{kind: copy})
        status, words, warnings = await ask(near.app, **{**wish, "prompt": wish.get("prompt", "a cat")})
        if kind == "lora_dir":  # made for another model, which the node alone can tell
            assert (status, "0 of 2 tensors fit sd1" in words) == (400, True)
        else:
            assert (status, words) == (200, "")
            assert kind == "upscaler_dir" or any(words.startswith(f"copy/{file}") for words in warnings)


async def test_a_lora_is_fitted_where_the_model_is(
    model_dir: Path, addons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has the LoRA and not the model: tensors are renamed, and misfits refused, on the node."""
    folder = tmp_path / "loras"
    shutil.copytree(addons / "lora_dir", folder)
    tensors, words = UNFIT["larger"]
    write_safetensors(folder / "larger.safetensors", tensors)
    (tmp_path / "empty").mkdir()
    async with near_cluster(monkeypatch, tmp_path / "empty", lora_dir=folder) as near:
        await with_node(near, model_dir, lora_dir=folder)
        status, _, warnings = await ask(near.app, "tiny-random", **LORA)
        assert (status, warnings) == (200, ["loras/style.safetensors: 2 renamed"])
        status, said, _ = await ask(near.app, "tiny-random", lora=[{"name": "larger"}])
        assert (status, words in said) == (400, True)


async def test_a_control_net_wants_a_whole_model(
    addons: Path, sd1: Path, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the node sees, where the server has no file of the model."""
    folders: dict[str, Any] = {"control_dir": addons / "control_dir"}
    async with near_cluster(monkeypatch, tmp_path, catalog=catalog, memory_check=False, **folders) as near:
        await with_node(near, sd1, **folders)
        _, wish = WISHES["control_dir"]
        status, words, _ = await ask(near.app, "crippled", **wish)
        assert (status, "lacks blocks" in words) == (400, True)


async def test_words_that_name_a_file_of_a_node_are_told(
    addons: Path, sd1: Path, catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A textual inversion may be named by its bare name, which means nothing where its file is not."""
    async with near_cluster(monkeypatch, tmp_path, catalog=catalog, memory_check=False) as near:
        await with_node(near, sd1, embedding_dir=addons / "embedding_dir")
        status, _, warnings = await ask(near.app, negative_prompt="easyneg")
    assert status == 200
    assert warnings == [
        "embedding: 'easyneg' has no effect; it is in the --embedding-dir of a, and must be in that of the"
        " server, too"
    ]
