"""The models' list, what it tells, and loading and unloading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from openai import OpenAI

from gguf_imagegen.catalog import quants
from gguf_imagegen.machine.memory import Available
from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, eventually, noise, png
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import CannotLoad, NeverLoads, QuickEngine


async def state(app: App) -> str:
    _, model = await app.get("/v1/models/tiny-random")
    return str(model["meta"]["state"])


async def wait_for_state(app: App, wanted: str) -> None:
    async def look() -> bool:
        return await state(app) == wanted

    await eventually(f"the model is {wanted}", look)


def test_official_client_lists_and_retrieves(server: ServerProcess) -> None:
    """The SDK reads the list and a single model; both give the same object."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        models = {model.id: model.model_dump() for model in client.models.list()}
        one = client.models.retrieve("tiny-random").model_dump()
        for model in (one, models["tiny-random"]):
            for name in ("free", "usable"):
                del model["meta"]["memory"][name]  # other processes come and go
        assert models["tiny-random"] == one
        assert one["object"] == "model"
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"
    assert len(models) > 1


async def test_meta_tells_all_that_a_client_must_know(running: RunningApp) -> None:
    """Capabilities, limits, defaults, names of samplers and schedules: every one of them is accepted."""
    async with running(engine=QuickEngine, max_images=3) as app:
        _, body = await app.get("/v1/models")
        assert body["object"] == "list"
        meta = next(model for model in body["data"] if model["id"] == "tiny-random")["meta"]
        assert meta["default"] is True
        assert meta["capabilities"] == ["text-to-image", "image-to-image", "inpainting"]
        assert meta["aliases"] == ["test"]
        assert meta["defaults"].items() >= {"size": "128x128", "steps": 20, "sampler": "euler"}.items()
        assert meta["limits"].items() >= {"max_side": 512, "max_n": 3, "size_multiple": 16}.items()
        assert meta["previews"] == ["proj", "tae", "vae"]
        for field in ("samplers", "schedules"):
            assert meta[field]
            for name in meta[field]:
                status, answer = await app.post(GENERATIONS, **SMALL, **{field[:-1]: name})
                assert status == 200, answer
                assert answer["data"][0][field[:-1]] == name


async def test_every_listed_model_is_described(running: RunningApp) -> None:
    """No entry of the catalog lacks what a client reads, on disk or not; only one is the default."""
    async with running(engine=QuickEngine) as app:
        _, body = await app.get("/v1/models?all=true")
        await wait_for_state(app, "loaded")
    keys = {"state", "family", "capabilities", "limits", "defaults", "samplers", "schedules", "previews"}
    assert all(model["meta"].keys() >= keys for model in body["data"])
    assert [model["id"] for model in body["data"] if model["meta"]["default"]] == ["tiny-random"]
    packaged = {"tiny-random", "glyph-128"}
    assert {m["meta"]["state"] for m in body["data"] if m["id"] not in packaged} == {"absent", "unsupported"}


async def test_aliases_mean_their_model(running: RunningApp) -> None:
    """A model can be looked at and asked for by its alias, which the answer repeats."""
    async with running(engine=QuickEngine) as app:
        _, model = await app.get("/v1/models/test")
        assert model["id"] == "tiny-random"
        _, body = await app.post(GENERATIONS, model="test", **SMALL)
        assert body["model"] == "test"


async def test_the_embedded_model_is_the_default(running: RunningApp, tmp_path: Path) -> None:
    """With nothing in the models folder, and nothing said, there is a model all the same."""
    async with running(engine=QuickEngine, model="embedded", models_dir=tmp_path) as app:
        assert (await app.get("/health"))[1]["model"] == "glyph-128"
        _, body = await app.post(GENERATIONS, **SMALL)
    assert body["model"] == "glyph-128"


async def test_unload_and_load(running: RunningApp) -> None:
    """Unloading frees the model, loading brings it back without a request, and both may be repeated."""
    async with running(engine=QuickEngine) as app:
        await wait_for_state(app, "loaded")
        for _ in range(2):
            assert (await app.post("/v1/models/tiny-random/unload"))[0] == 202
            await wait_for_state(app, "ready")
        assert (await app.get("/health"))[1]["loaded"] is False
        for _ in range(2):
            assert (await app.post("/v1/models/test/load"))[0] == 202
            await wait_for_state(app, "loaded")


async def test_memory_and_download_are_those_of_the_best(
    running: RunningApp, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the quantisation that a pull takes, with its components; the one on disk once there is one."""
    monkeypatch.setattr(quants, "available", lambda: Available(15 * 10**9))
    async with running(engine=QuickEngine) as app:
        meta = (await app.get("/v1/models/flux.1-schnell"))[1]["meta"]
        best = next(quant for quant in meta["quants"] if quant["name"] == meta["best"])
        assert meta["memory"]["fits"] is best["fits"] is True
        assert meta["memory"]["needs"] <= meta["memory"]["usable"] == int(0.9 * 15 * 10**9)
        assert not meta["quants"][0]["fits"]
        assert meta["download_bytes"] == best["download_bytes"] == best["bytes"] > 9 * 10**9
        here = (await app.get("/v1/models/tiny-random"))[1]["meta"]
        assert (here["best"], here["download_bytes"], here["quants"][0]["state"]) == (
            "tiny-random",
            0,
            "ready",
        )


async def test_the_state_of_each_quantisation(running: RunningApp, model_dir: Path, tmp_path: Path) -> None:
    """What a cancelled pull left, and what verification set aside, is told."""
    state = tmp_path / ".state/gpustack/stable-diffusion-v1-5-GGUF"
    state.mkdir(parents=True)
    (state / f"stable-diffusion-v1-5-Q8_0.gguf.{'ab' * 8}.partial").write_bytes(b"x")
    (state / "stable-diffusion-v1-5-Q4_0.gguf.corrupt").write_bytes(b"x")
    async with running(engine=QuickEngine, models_dir=tmp_path, model="embedded") as app:
        quants = (await app.get("/v1/models/sd-1.5"))[1]["meta"]["quants"]
    assert {quant["quant"]: quant["state"] for quant in quants} == {
        "Q8_0": "partial", "Q4_1": "absent", "Q4_0": "corrupt", "FP16": "absent",
    }  # fmt: skip


async def test_a_quantisation_may_be_the_default(
    running: RunningApp, model_dir: Path, tmp_path: Path
) -> None:
    """The one that the settings name is loaded, although another one is on disk and stands before it."""
    quants = {name: {"file": f"{name}.gguf"} for name in ("Q8_0", "Q4_0")}
    for name in quants:
        shutil.copy(model_dir / "tiny-random.gguf", tmp_path / f"{name}.gguf")
    shutil.copy(model_dir / "tiny-random-tae.gguf", tmp_path / "tae.gguf")
    entry = {"family": "ovis-image", "files": {"taesd": "tae.gguf"}, "quants": quants}
    catalog = tmp_path / "two.yaml"
    catalog.write_text(json.dumps({"version": 1, "models": {"two": entry}}))
    async with running(engine=QuickEngine, models_dir=tmp_path, catalog=catalog, model="two:Q4_0") as app:

        async def loaded() -> bool:
            return bool((await app.get("/health"))[1]["models"] == ["two:Q4_0"])

        await eventually("the quantisation is loaded", loaded)
        assert (await app.post(GENERATIONS, **SMALL))[0] == 200
        assert await loaded()
        assert (await app.get("/v1/models/two"))[1]["meta"]["default"] is True


async def test_loading_is_a_state(running: RunningApp) -> None:
    """While a model loads, its state says so."""
    async with running(engine=NeverLoads) as app:
        await wait_for_state(app, "loading")
        async with app.session.delete(f"{app.url}/v1/models/tiny-random?files=true") as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (409, "model_busy")


@pytest.mark.parametrize(("method", "path"), [("POST", "/unload"), ("DELETE", "")])
async def test_a_load_that_nobody_waits_for_is_ended(running: RunningApp, method: str, path: str) -> None:
    """Unloading a model that is being loaded ends the load, which has then not failed."""
    engines = iter([NeverLoads, QuickEngine])
    async with running(engine=lambda: next(engines)()) as app:

        async def begun() -> bool:
            loading = app.service.pool.loading
            return loading is not None and loading.total > 0

        await eventually("the engine has begun to load", begun)
        async with app.session.request(method, f"{app.url}/v1/models/tiny-random{path}") as answer:
            assert answer.ok
        await wait_for_state(app, "ready")
        assert (await app.get("/v1/models/tiny-random"))[1]["meta"]["error"] is None
        assert (await app.get("/health"))[1]["error"] is None
        assert (await app.post("/v1/models/tiny-random/load"))[0] == 202
        await wait_for_state(app, "loaded")


async def test_limits_can_be_reached(running: RunningApp, tmp_path: Path) -> None:
    """What the list, the OpenAPI document and sd.cpp's capabilities tell of is what a request can have."""
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    catalog = tmp_path / "silent.yaml"
    entry = {"family": "ovis-image", "files": files, "edits": "reference", "capabilities": ["reference-edit"]}
    catalog.write_text(json.dumps({"version": 1, "models": {"silent": entry}}))
    most = {"max_steps": 200, "max_side": 20_000, "max_pixels": 40_000}
    async with running(engine=QuickEngine, catalog=catalog, model="silent", **most) as app:
        limits = (await app.get("/v1/models/silent"))[1]["meta"]["limits"]
        side, steps, count = (limits[name] for name in ("max_side", "max_steps", "max_images"))
        document = (await app.get("/openapi.json"))[1]["components"]["schemas"]
        native = (await app.get("/sdcpp/v1/capabilities"))[1]["limits"]
        assert (native["max_width"], native["max_height"], native["max_pixels"]) == (side, side, 40_000)
        for schema in ("ImageRequest", "HiresRequest"):
            assert document[schema]["properties"]["steps"]["anyOf"][0]["maximum"] == steps == 200
        fields = {"prompt": "a cat", "image": [data_url(png(noise(64, 64)))] * count}
        status, body = await app.post(EDITS, **fields, size=f"{side}x{side // 8}", steps=steps)
        assert (status, body["warnings"]) == (200, []), body
        assert (body["data"][0]["steps"], body["data"][0]["width"]) == (200, side)
        for beyond in ({"size": f"{side}x{side // 8 + 2}"}, {"size": "64x64", "steps": steps + 1}):
            assert (await app.post(EDITS, **{**fields, **beyond}))[0] == 400


async def test_a_real_load_goes_through_its_states(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """From the wish to the end the model is loading, whatever the engine tells of its files meanwhile."""
    model = f"{server.url}/v1/models/tiny-random"

    async def states(action: str, last: str) -> list[str]:
        seen: list[str] = []
        async with session.post(f"{model}/{action}"):
            pass
        while seen[-1:] != [last]:
            async with session.get(model) as answer:
                now = (await answer.json())["meta"]["state"]
            seen += [now] * (seen[-1:] != [now])
        return seen

    assert await states("unload", "ready") in (["ready"], ["loaded", "ready"])
    assert await states("load", "loaded") in (["loading", "loaded"], ["ready", "loading", "loaded"])


async def test_a_failed_load_is_told(running: RunningApp) -> None:
    """The model says why, until it is tried again."""
    engines = iter([CannotLoad, QuickEngine])
    async with running(engine=lambda: next(engines)()) as app:

        async def error() -> Any:
            return (await app.get("/v1/models/tiny-random"))[1]["meta"]["error"]

        assert (await eventually("the load has failed", error))["code"] == "model_load_failed"
        assert await state(app) == "ready"
        assert (await app.post("/v1/models/tiny-random/load"))[1]["meta"]["error"] is None
        await wait_for_state(app, "loaded")


@pytest.mark.parametrize("action", ["load", "unload"])
async def test_unknown_models_cannot_be_managed(running: RunningApp, action: str) -> None:
    """Both actions on a name that is none are a 404."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.post(f"/v1/models/nothing/{action}")
    assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_model_without_its_files_cannot_be_loaded(running: RunningApp, model_dir: Path) -> None:
    """The answer says where its files come from, and names no local folder."""
    async with running(engine=QuickEngine) as app:
        status, body = await app.post("/v1/models/sd-turbo/load")
    assert (status, body["error"]["code"]) == (404, "model_not_downloaded")
    assert body["error"]["message"].endswith("gguf-imagegen pull sd-turbo")
    assert "sd_turbo-f16-q8_0.gguf" in body["error"]["message"]
    assert str(model_dir) not in body["error"]["message"]
