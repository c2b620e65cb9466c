"""ControlNets by request through the front door, with a quick engine that shows what reached it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.pool.pool import key_of
from gguf_imagegen.vocabulary.engine import Generate, LoadSpec
from gguf_imagegen.vocabulary.errors import ModelLoadFailed
from tests.api.client import GENERATIONS, SMALL, noise, png
from tests.api.client import picture as read_picture
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine, SeeingEngine
from tests.unet import write_control_net, write_sd1
from tests.weights import write_safetensors

PICTURE = base64.b64encode(png(noise(64, 64))).decode()
A1111 = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SD1 model and two ControlNets of nothing but zeros, in sparse files, and files of other kinds."""
    folder = tmp_path_factory.mktemp("sd1")
    write_sd1(folder, alive=False)
    (folder / "control").mkdir()
    write_control_net(folder / "control" / "edges.safetensors", alive=False)
    write_control_net(folder / "control" / "depth.safetensors", alive=False)
    hint = np.zeros((16, 3, 3, 3), np.float16)
    small = np.zeros((1, 1), np.float16)
    diffusers = {"controlnet_cond_embedding.conv_in.weight": hint}
    write_safetensors(folder / "control" / "diffusers.safetensors", diffusers)
    sdxl = {
        "input_hint_block.0.weight": hint, "zero_convs.0.0.weight": small, "middle_block_out.0.weight": small,
        "input_blocks.4.1.proj_in.weight": small,
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": np.zeros((1, 2048), np.float16),
    }  # fmt: skip
    write_safetensors(folder / "control" / "sdxl.safetensors", sdxl)
    write_safetensors(folder / "control" / "other.safetensors", {"a": small})
    return folder


@pytest.fixture
async def served(running: RunningApp, folder: Path) -> AsyncIterator[tuple[App, list[Any]]]:
    """The server, and what its engines were asked."""
    seen: list[Any] = []
    files = {
        "models_dir": folder,
        "model": str(folder / "sd1.safetensors"),
        "control_dir": folder / "control",
    }
    async with running(engine=lambda: SeeingEngine(seen), memory_check=False, **files) as app:
        yield app, seen


def loads(seen: list[Any]) -> list[str]:
    """The ControlNet of each load, empty for none."""
    paths = [each.files.get("control_net") for each in seen if isinstance(each, LoadSpec)]
    return [path.stem if path else "" for path in paths]


async def test_a_request_names_its_control_net(served: tuple[App, list[Any]], folder: Path) -> None:
    """It is loaded with the model, and stays for requests that name none; another one is another load."""
    app, seen = served
    assert (await app.post(GENERATIONS, **SMALL))[0] == 200
    control = {"model": "edges", "image": PICTURE, "strength": 0.5, "preprocess": "canny"}
    status, body = await app.post(GENERATIONS, **SMALL, control=control)
    assert status == 200, body
    assert body["warnings"] == []
    flat = {"control": PICTURE, "control_model": "edges.safetensors", "control_canny": True}
    assert (await app.post(GENERATIONS, **SMALL, **flat))[0] == 200
    assert (await app.post(GENERATIONS, **SMALL))[0] == 200
    assert loads(seen) == ["", "edges"]
    assert (await app.post(GENERATIONS, **SMALL, control={**control, "model": "depth"}))[0] == 200
    assert loads(seen) == ["", "edges", "depth"]
    plain, first, second, after, _ = [each for each in seen if isinstance(each, Generate)]
    assert (first.control_strength, first.control_canny) == (0.5, True)
    assert first.control_image is not None
    assert (second.control_strength, second.control_canny) == (0.9, True)
    assert plain.control_image is after.control_image is None


@pytest.mark.parametrize(
    ("control", "words"),
    [
        ({"model": "absent", "image": PICTURE}, "known: depth, diffusers, edges, other, sdxl"),
        ({"model": "edgse", "image": PICTURE}, "did you mean 'edges'?"),
        ({"model": "../sd1", "image": PICTURE}, "no ControlNet '../sd1'"),
        ({"model": "other", "image": PICTURE}, "'other' is no ControlNet file"),
        ({"model": "diffusers", "image": PICTURE}, "diffusers' names"),
        ({"model": "sdxl", "image": PICTURE}, "ControlNets of SD1 only"),
        ({"model": "edges"}, "needs an image"),
        ({"image": PICTURE}, "name one of --control-dir in control_model"),
        ({"model": "edges", "image": "!"}, "Invalid image"),
        ({"model": "edges", "image": PICTURE, "preprocess": "depth"}, "control_preprocess"),
    ],
)
async def test_what_cannot_be_used(served: tuple[App, list[Any]], control: Any, words: str) -> None:
    """Refused in words before anything is loaded."""
    app, seen = served
    status, body = await app.post(GENERATIONS, **SMALL, control=control)
    assert status == 400, body
    assert words in body["error"]["message"]
    assert "edges" not in loads(seen)


async def test_automatic1111s_extension(served: tuple[App, list[Any]]) -> None:
    """Units as its clients send them, and the lists that they read first."""
    app, seen = served
    assert (await app.get("/controlnet/model_list"))[1] == {"model_list": ["depth", "edges"]}
    assert (await app.get("/controlnet/module_list"))[1]["module_list"] == ["none", "canny"]
    assert (await app.get("/controlnet/version"))[1] == {"version": 3}
    unit = {"input_image": PICTURE, "model": "edges [d14c016b]", "module": "canny", "weight": 0.7}
    units = [{**unit, "enabled": False}, {**unit, "guidance_end": 0.8}, {"model": "None"}]
    scripts = {"ControlNet": {"args": units}, "other": {"args": []}}
    status, body = await app.post("/sdapi/v1/txt2img", **A1111, alwayson_scripts=scripts)
    assert status == 200, body
    assert body["warnings"][:3] == [
        "alwayson_scripts: 'other' is not known here and was ignored",
        "alwayson_scripts: a unit of 'ControlNet' without a model has no effect",
        "alwayson_scripts: ControlNet's 'guidance_end' has no effect on this engine",
    ]
    assert body["parameters"]["alwayson_scripts"] is None
    spec = seen[-1]
    assert (spec.control_strength, spec.control_canny, loads(seen)[-1]) == (0.7, True, "edges")
    del unit["input_image"]
    scripts = {"controlnet": {"args": [unit]}}
    fields = {**A1111, "init_images": [PICTURE], "alwayson_scripts": scripts}
    assert (await app.post("/sdapi/v1/img2img", **fields))[0] == 200
    assert seen[-1].control_image is not None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([{"model": "edges", "image": PICTURE}] * 2, "one at a time"),
        ([{"model": "edges", "image": PICTURE, "module": "depth_midas"}], "known: none, canny"),
        ([{"model": "edges"}], "needs an image"),
        ([{"model": "edges", "image": PICTURE, "weight": 9}], "weight"),
        ("edges", "must be a list of units"),
    ],
)
async def test_units_that_cannot_be_drawn(served: tuple[App, list[Any]], args: Any, words: str) -> None:
    """A 400 in its own shape."""
    app, _ = served
    scripts = {"controlnet": {"args": args}}
    status, body = await app.post("/sdapi/v1/txt2img", **A1111, alwayson_scripts=scripts)
    assert status == 400, body
    assert words in str(body)


async def test_one_that_fails_to_load_leaves_the_model(running: RunningApp, folder: Path) -> None:
    """Its failure is not the model's, which is loaded at once for the next request."""

    class Failing(QuickEngine):
        async def at_load(self) -> None:
            if "control_net" in self.model.files:
                raise ModelLoadFailed("tensor of a wrong shape")

    files = {
        "models_dir": folder,
        "model": str(folder / "sd1.safetensors"),
        "control_dir": folder / "control",
    }
    async with running(engine=Failing, memory_check=False, **files) as app:
        control = {"model": "edges", "image": PICTURE}
        status, body = await app.post(GENERATIONS, **SMALL, control=control)
        assert (status, body["error"]["code"]) == (500, "model_load_failed")
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200


def test_placement_tells_control_nets_apart() -> None:
    """A lane with a ControlNet holds the model too; one without it does not hold the ControlNet."""
    plain = Entry(id="m", family="sd1", files={"model": Path("m.gguf")})
    files = {**plain.files, "control_net": Path("edges.gguf")}
    edges = plain.model_copy(update={"files": files})
    depth = plain.model_copy(update={"files": {**files, "control_net": Path("depth.gguf")}})
    assert len({key_of(each) for each in (plain, edges, depth)}) == 3
    assert edges.serves(edges)
    assert edges.serves(plain)
    assert not plain.serves(edges)
    assert not depth.serves(edges)


async def test_a_distilled_unet_takes_none(running: RunningApp, folder: Path, tmp_path: Path) -> None:
    """One without a middle block has other outputs than a ControlNet adds to, which would end the engine."""
    write_sd1(tmp_path, alive=False, middle=False)
    files = {"models_dir": tmp_path, "model": str(tmp_path / "sd1.safetensors")}
    async with running(engine=QuickEngine, control_dir=folder / "control", **files) as app:
        control = {"model": "edges", "image": PICTURE}
        status, body = await app.post(GENERATIONS, **SMALL, control=control)
        assert status == 400
        assert "lacks blocks" in body["error"]["message"]


async def test_another_familys_model_takes_none(running: RunningApp, folder: Path) -> None:
    """Told by both headers."""
    async with running(engine=QuickEngine, control_dir=folder / "control") as app:
        control = {"model": "edges", "image": PICTURE}
        status, body = await app.post(GENERATIONS, **SMALL, control=control)
        assert status == 400
        assert (
            "edges.safetensors is for sd1 models, and tiny-random is ovis-image" in body["error"]["message"]
        )


async def test_they_are_listed(served: tuple[App, list[Any]]) -> None:
    """Our list says of each what it is for, or why it cannot be used."""
    _, addons = await served[0].get("/v1/addons")
    found = {each["name"]: each for each in addons["control_nets"]}
    assert found["edges"] == {"name": "edges", "family": "sd1", "fault": None}
    assert found["sdxl"]["family"] == "sdxl"
    assert "SD1 only" in found["sdxl"]["fault"]
    assert "diffusers' names" in found["diffusers"]["fault"]


async def test_what_a_preprocessor_makes(running: RunningApp, model_dir: Path) -> None:
    """By the real engine, loading nothing: the edge between two halves, the shorter side as asked."""
    halves = np.zeros((64, 128, 3), np.uint8)
    halves[32:] = 255
    picture = base64.b64encode(png(Image.fromarray(halves))).decode()
    async with running(models_dir=model_dir) as app:
        asked = {"controlnet_input_images": [picture], "controlnet_processor_res": 128}
        status, body = await app.post("/controlnet/detect", **asked, controlnet_module="canny")
        assert (status, body["info"]) == (200, "Success"), body
        edges = np.asarray(read_picture(body["images"][0]).convert("L"))
        assert edges.shape == (128, 256)
        lit = np.flatnonzero(edges.max(axis=1) > 128)
        assert 0 < len(lit) <= 8
        assert 56 <= lit.min() <= lit.max() <= 72
        status, body = await app.post("/controlnet/detect", controlnet_input_images=[picture, picture])
        assert status == 200, body
        assert [read_picture(each).size for each in body["images"]] == [(1024, 512)] * 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"controlnet_module": "depth_midas"}, "Module not available: 'depth_midas'; known: none, canny"),
        ({"controlnet_input_images": []}, "No image selected"),
        ({"controlnet_input_images": ["AAAA"]}, "Invalid image"),
        ({"controlnet_processor_res": 4096}, "controlnet_processor_res"),
    ],
)
async def test_what_no_preprocessor_makes(
    served: tuple[App, list[Any]], fields: dict[str, Any], words: str
) -> None:
    """Refused in the extension's words, with what is there."""
    asked = {"controlnet_module": "canny", "controlnet_input_images": [PICTURE], **fields}
    status, body = await served[0].post("/controlnet/detect", **asked)
    assert status in (400, 422), body
    assert words in str(body["detail"])
