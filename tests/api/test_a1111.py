"""AUTOMATIC1111's API, by its own client `webuiapi` and by hand, on the real engine where it matters."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import webuiapi
from PIL import Image

from gguf_imagegen.api.dialects.a1111.pictures import plain
from gguf_imagegen.api.dialects.a1111.routes import GET, POST
from gguf_imagegen.vocabulary.errors import ImagegenError
from tests.api.client import GENERATIONS, SMALL, data_url, eventually, noise, picture, png, start_job
from tests.conftest import DEADLINE, App, RunningApp, ServerProcess
from tests.fake_engines import CrashesAtStep, NeverAnswers, QuickEngine, SlowEngine
from tests.weights import write_lora, write_upscaler

API = "/sdapi/v1/"
IDLE = {
    "progress": 0.0,
    "eta_relative": 0.0,
    "state": {
        "skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0,
        "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0,
    },
    "current_image": None,
    "textinfo": None,
    "current_task": None,
}  # fmt: skip
SHORT = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "cfg_scale": 1.0, "seed": 5}
KEY = "key-Zm9vYmFyYmF6"


@pytest.fixture(scope="module")
def equipped(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a LoRA, two upscalers, and the tiny model twice more, once editing by reference."""
    loras, upscalers = tmp_path_factory.mktemp("loras"), tmp_path_factory.mktemp("upscalers")
    write_lora(loras / "ink.gguf")
    write_upscaler(upscalers / "double.gguf", 2)
    write_upscaler(upscalers / "R-ESRGAN 4x+.gguf", 4)
    catalog = tmp_path_factory.mktemp("catalog") / "more.yaml"
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    entry = {"family": "ovis-image", "files": files, "defaults": {"size": "64x64", "steps": 2}}
    models = {
        "Second": {**entry, "aliases": ["other"]},
        "by-reference": {
            **entry, "edits": "reference", "capabilities": ["text-to-image", "reference-edit"],
        },
    }  # fmt: skip
    catalog.write_text(json.dumps({"version": 1, "models": models}))
    flags = ["--lora-dir", str(loras), "--upscaler-dir", str(upscalers), "--catalog", str(catalog)]
    process = ServerProcess(model_dir, "--grace", "1", *flags)
    process.wait_until_ready()
    yield process
    process.stop()


def connect(url: str, **login: str) -> webuiapi.WebUIApi:
    where = urlsplit(url)
    return webuiapi.WebUIApi(host=where.hostname, port=where.port, steps=2, **login)


@pytest.fixture
def webui(equipped: ServerProcess) -> Iterator[webuiapi.WebUIApi]:
    """The official-looking client; whatever a test switches is switched back."""
    client = connect(equipped.url)
    yield client
    client.set_options({"sd_model_checkpoint": "tiny-random"})
    client.session.close()


async def txt2img(app: App, **fields: Any) -> Any:
    status, body = await app.post(API + "txt2img", **{**SHORT, **fields})
    assert status == 200, body
    return body


# -- pictures -----------------------------------------------------------------------------------------


def test_client_makes_a_picture(webui: webuiapi.WebUIApi) -> None:
    """A picture of the size asked for, its seed and settings in `info`, its text in the file."""
    result = webui.txt2img(prompt="a cat", negative_prompt="dull", width=96, height=64, seed=7, cfg_scale=2.5)
    assert result.image.size == (96, 64)
    info = result.info
    assert (info["prompt"], info["negative_prompt"]) == ("a cat", "dull")
    assert (info["seed"], info["all_seeds"], info["batch_size"]) == (7, [7], 1)
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (96, 64, 2, 2.5)
    assert (info["sampler_name"], info["sd_model_name"]) == ("Euler a", "tiny-random")
    assert info["infotexts"] == [result.image.info["parameters"]]
    assert "Seed: 7" in info["infotexts"][0]
    assert result.parameters["prompt"] == "a cat"
    assert result.json["warnings"] == []


def test_info_has_all_that_is_there_in_the_original(webui: webuiapi.WebUIApi) -> None:
    """The keys of `Processed.js`."""
    info = webui.txt2img(prompt="a cat", width=64, height=64).info
    assert set(info) == {
        "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed",
        "all_subseeds", "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps",
        "batch_size", "restore_faces", "face_restoration_model", "sd_model_name", "sd_model_hash",
        "sd_vae_name", "sd_vae_hash", "seed_resize_from_w", "seed_resize_from_h", "denoising_strength",
        "extra_generation_params",
        "index_of_first_image", "infotexts", "styles", "job_timestamp", "clip_skip",
        "is_using_inpainting_conditioning", "version",
    }  # fmt: skip
    assert len(info["job_timestamp"]) == 14


def test_client_asks_for_several(webui: webuiapi.WebUIApi) -> None:
    """`batch_size` times `n_iter`, with a seed each, and a seed of the server's choice for -1."""
    result = webui.txt2img(prompt="a cat", width=64, height=64, batch_size=2, n_iter=2)
    first = result.info["seed"]
    assert first >= 0
    assert len(result.images) == 4
    assert result.info["all_seeds"] == [first, first + 1, first + 2, first + 3]
    assert result.info["all_prompts"] == ["a cat"] * 4
    again = webui.txt2img(prompt="a cat", width=64, height=64, seed=first + 1)
    assert again.image.tobytes() == result.images[1].tobytes()


def test_client_waits_asynchronously(webui: webuiapi.WebUIApi) -> None:
    """`use_async` goes another way through the client."""

    async def both() -> list[Any]:
        calls = [
            webui.txt2img(**SHORT, use_async=True),
            webui.txt2img(**{**SHORT, "seed": 6}, use_async=True),
        ]
        return await asyncio.gather(*calls)

    first, second = asyncio.run(both())
    assert (first.info["seed"], second.info["seed"]) == (5, 6)


def test_client_changes_a_picture(webui: webuiapi.WebUIApi) -> None:
    """Less strength stays nearer to the input; the input is not echoed."""
    red = Image.new("RGB", (64, 64), (200, 30, 30))

    def distance(strength: float) -> float:
        result = webui.img2img(
            images=[red], prompt="a cat", denoising_strength=strength, width=64, height=64, seed=3, steps=4
        )
        assert result.info["denoising_strength"] == strength
        assert result.parameters["init_images"] is None
        pixels = np.asarray(result.image).astype(int) - np.asarray(red).astype(int)
        return float(np.abs(pixels).mean())

    assert distance(0.25) < distance(0.9)


def test_client_repaints_under_a_mask(webui: webuiapi.WebUIApi) -> None:
    """White is repainted and black kept to the pixel; inverted it is the other way round.

    The client's own `mask_blur` of 4 makes a soft border of some 12 pixels.
    """
    image, mask = noise(64, 64), Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    for invert, blur, kept in (
        (0, 0, slice(32, 64)), (1, 0, slice(0, 32)), (0, 4, slice(46, 64)), (1, 4, slice(0, 18))
    ):  # fmt: skip
        result = webui.img2img(
            images=[image],
            mask_image=mask,
            prompt="a cat",
            width=64,
            height=64,
            inpainting_mask_invert=invert,
            mask_blur=blur,
        )
        same = (np.asarray(result.image) == np.asarray(image)).all(axis=2)
        assert same[:, kept].all()
        assert not same.all()
        assert result.json["warnings"] == []


def test_denoising_strength_makes_no_edit_of_txt2img(webui: webuiapi.WebUIApi) -> None:
    """The client always sends it, and the picture does not depend on it."""
    first, second = (
        webui.txt2img(prompt="a cat", width=64, height=64, seed=1, denoising_strength=strength)
        for strength in (0.1, 0.9)
    )
    assert first.image.tobytes() == second.image.tobytes()
    assert first.info["denoising_strength"] is None


def test_client_has_a_second_pass(webui: webuiapi.WebUIApi) -> None:
    """By scale, by size, in latent space, by Pillow's kernels and by a model."""
    for upscaler, size in (
        (webuiapi.HiResUpscaler.Latent, {"hr_scale": 1.5}),
        (webuiapi.HiResUpscaler.LatentNearestExact, {"hr_resize_x": 96, "hr_resize_y": 96}),
        (webuiapi.HiResUpscaler.none, {"hr_resize_x": 96}),
        ("double", {"hr_scale": 1.5}),
    ):
        result = webui.txt2img(
            prompt="a cat", width=64, height=64, enable_hr=True, hr_upscaler=upscaler, hr_second_pass_steps=2,
            denoising_strength=0.6, **size,
        )  # fmt: skip
        assert result.image.size == (96, 96)
        assert result.info["denoising_strength"] == 0.6


@pytest.mark.parametrize("name", ["DPM++ 2M Karras", "DDIM", "Heun", "LCM"])
def test_client_names_samplers(webui: webuiapi.WebUIApi, name: str) -> None:
    """As the web UI shows them; an unknown one is refused with the list."""
    result = webui.txt2img(prompt="a cat", width=64, height=64, sampler_name=name)
    assert result.info["sampler_name"] == name.removesuffix(" Karras")
    if name.endswith("Karras"):
        assert result.info["extra_generation_params"]["Schedule type"] == "Karras"
    with pytest.raises(RuntimeError, match="Valid: Euler a") as caught:
        webui.txt2img(prompt="a cat", sampler_name="Best")
    assert caught.value.args[0] == 400


def test_client_names_loras_in_the_prompt(webui: webuiapi.WebUIApi) -> None:
    """A tag of a known LoRA has its effect; one of an unknown LoRA is taken out, and that is said."""
    fields = {"width": 64, "height": 64, "seed": 1}
    plainly = webui.txt2img(prompt="a cat", **fields)
    tagged = webui.txt2img(prompt="a cat<lora:ink:0.8>", **fields)
    weightless = webui.txt2img(prompt="a cat<lora:ink:0>", **fields)
    unknown = webui.txt2img(prompt="a cat<lora:nothing:0.8>", **fields)
    assert tagged.image.tobytes() != plainly.image.tobytes()
    assert weightless.image.tobytes() == unknown.image.tobytes() == plainly.image.tobytes()
    assert tagged.json["warnings"] == []
    assert tagged.info["prompt"] == "a cat<lora:ink:0.8>"
    assert "<lora" in unknown.json["warnings"][0]


def test_client_sets_options_for_one_request(webui: webuiapi.WebUIApi) -> None:
    """Another model, another file format; afterwards all is as before, unless it is not to be restored."""
    fields = {"prompt": "a cat", "width": 64, "height": 64}
    result = webui.txt2img(
        **fields, override_settings={"sd_model_checkpoint": "Second", "samples_format": "webp"}
    )
    assert (result.info["sd_model_name"], result.image.format) == ("Second", "WEBP")
    assert webui.util_get_current_model() == "tiny-random"
    webui.txt2img(
        **fields,
        override_settings={"sd_model_checkpoint": "other"},
        override_settings_restore_afterwards=False,
    )
    assert webui.util_get_current_model() == "Second"
    with pytest.raises(RuntimeError, match="model_not_found"):
        webui.txt2img(**fields, override_settings={"sd_model_checkpoint": "nothing"})


def test_client_wants_no_pictures(webui: webuiapi.WebUIApi) -> None:
    """`send_images` false; `save_images` is what the server does anyway."""
    result = webui.txt2img(prompt="a cat", width=64, height=64, send_images=False, save_images=True)
    assert result.images == []
    assert len(result.info["infotexts"]) == 1
    assert result.json["warnings"] == []


async def test_a_server_that_keeps_no_pictures(running: RunningApp) -> None:
    """`save_images` says what it needs."""
    async with running(engine=QuickEngine) as app:
        _, answer = await app.post("/sdapi/v1/txt2img", prompt="a cat", save_images=True)
    assert "--output-dir" in answer["warnings"][0]


def test_client_asks_for_what_is_not_there(webui: webuiapi.WebUIApi) -> None:
    """Scripts, missing images and references that cannot be used are refused in words."""
    calls: dict[str, Callable[[], Any]] = {
        "there is no script .*X/Y/Z plot": lambda: webui.txt2img(prompt="a", script_name="X/Y/Z plot"),
        "image: at least one image": lambda: webui.img2img(prompt="a cat"),
        "too large": lambda: webui.txt2img(prompt="a cat", width=4096, height=4096),
        "no model that describes": lambda: webui.interrogate(noise()),
        "steps are too many": lambda: webui.txt2img(prompt="a cat", steps=100_000),
    }
    for words, call in calls.items():
        with pytest.raises(RuntimeError, match=words) as caught:
            call()
        assert caught.value.args[0] == 400
        assert json.loads(caught.value.args[1])["detail"]


def test_client_calls_extensions_that_are_not_there(webui: webuiapi.WebUIApi) -> None:
    """Paths of tagger and others are an ordinary 404; that arguments are ignored is said."""
    for path in ("tagger/v1/interrogators", "sdapi/v1/artists"):
        assert webui.custom_get(path)["error"]["code"] == "not_found"
    with pytest.raises(RuntimeError, match="not_found"):
        webui.custom_post("controlnet/txt2img", {})
    unit = webuiapi.ControlNetUnit(image=noise(64, 64), module="canny")
    result = webui.txt2img(
        prompt="a cat", width=64, height=64, controlnet_units=[unit], alwayson_scripts={}
    )  # the client writes into its own default value
    assert "'ControlNet'" in result.json["warnings"][0]


async def test_references_of_sd_cpps_server(equipped: ServerProcess, session: Any) -> None:
    """`extra_images` are what a model that edits by reference draws from; others refuse them."""
    body = {**SHORT, "extra_images": [data_url(png(noise(64, 64)))]}
    statuses = []
    for model in ("by-reference", "tiny-random"):
        fields = {**body, "override_settings": {"sd_model_checkpoint": model}}
        async with session.post(equipped.url + API + "txt2img", json=fields) as answer:
            statuses.append((answer.status, (await answer.json()).get("detail", "")))
    assert statuses == [(200, ""), (400, "extra_images: tiny-random takes no references")]


async def test_structured_loras_of_sd_cpps_server(equipped: ServerProcess, session: Any) -> None:
    """`path` is what GET loras says, and never leads out of the folder."""
    async with session.get(equipped.url + API + "loras") as answer:
        (item,) = await answer.json()
    assert item == {"name": "ink", "alias": "ink", "path": "ink", "metadata": {}}
    for path, status in ((item["path"], 200), ("../ink", 400), (None, 400)):
        body = {**SHORT, "lora": [{"path": path, "multiplier": 0.5}]}
        async with session.post(equipped.url + API + "txt2img", json=body) as answer:
            assert answer.status == status


async def test_parameters_are_echoed_as_plain_json(running: RunningApp) -> None:
    """All keys, unknown ones too; pictures only if so wished, and nothing that strict readers refuse."""
    image = data_url(png(noise(64, 64)))
    async with running(engine=QuickEngine) as app:
        body = await txt2img(app, unknown={"a": [1, None]}, prompt="a cat")
        assert body["parameters"] == {**SHORT, "unknown": {"a": [1, None]}}
        for include in (False, True):
            fields = {**SHORT, "init_images": [image], "include_init_images": include}
            _, body = await app.post(API + "img2img", **fields)
            assert body["parameters"]["init_images"] == ([image] if include else None)
        raw = json.dumps({**SHORT, "odd": float("nan"), "deep": [[1]]}).replace("[[1]]", "[" * 31 + "]" * 31)
        async with app.session.post(app.url + API + "txt2img", data=raw) as answer:
            text = await answer.text()
        assert answer.status == 200
        assert "NaN" not in text
        assert json.loads(text)["parameters"]["odd"] is None
    assert plain({"a": [1.5, float("inf"), "x"]}) == {"a": [1.5, None, "x"]}


async def test_answer_at_once(running: RunningApp) -> None:
    """`Prefer: respond-async` works here as on every route that makes pictures."""
    async with running(engine=QuickEngine) as app:
        headers = {"Prefer": "respond-async"}
        async with app.session.post(app.url + API + "txt2img", json=SHORT, headers=headers) as answer:
            assert answer.status == 202
            assert answer.headers["Location"].endswith((await answer.json())["id"])


async def test_failures_are_told(running: RunningApp) -> None:
    """A crash of the engine is its status, with FastAPI's `detail`."""
    async with running(engine=CrashesAtStep) as app:
        status, body = await app.post(API + "txt2img", **{**SHORT, "steps": 4})
    assert (status, body["error"]["code"]) == (500, "worker_crashed")
    assert body["detail"] == body["error"]["message"]


# -- progress and interrupt ---------------------------------------------------------------------------


def in_background(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread, results


def wait_until(webui: webuiapi.WebUIApi, reached: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        if reached(state := webui.get_progress()):
            return state
        time.sleep(0.02)
    raise AssertionError(state)


def test_client_watches_the_progress(webui: webuiapi.WebUIApi, capsys: pytest.CaptureFixture[str]) -> None:
    """It rises with the steps, shows the picture as it comes, and ends in exactly the idle state."""
    webui.util_wait_for_ready(check_interval=0.1)
    assert webui.get_progress() == IDLE
    thread, results = in_background(lambda: webui.txt2img(prompt="a cat", width=64, height=64, steps=50))
    state = wait_until(webui, lambda now: bool(now["current_image"]) and now["state"]["sampling_step"] > 2)
    assert 0 < state["progress"] < 1
    assert state["eta_relative"] >= 0
    assert (state["state"]["job"], state["state"]["job_count"], state["state"]["job_no"]) == ("txt2img", 1, 0)
    assert state["state"]["sampling_steps"] == 50
    assert picture(state["current_image"]).size[0] > 0
    later = wait_until(webui, lambda now: now["progress"] > state["progress"])
    assert later["state"]["job_timestamp"] == state["state"]["job_timestamp"]
    capsys.readouterr()
    webui.util_wait_for_ready(check_interval=0.1)
    assert "[WAIT]: progress" in capsys.readouterr().out
    thread.join(DEADLINE)
    assert results[0].image.size == (64, 64)
    assert webui.get_progress() == IDLE


def test_client_interrupts(webui: webuiapi.WebUIApi) -> None:
    """The call that waits gets what was finished before, and the server goes on."""
    thread, results = in_background(
        lambda: webui.txt2img(prompt="a cat", width=64, height=64, steps=20, n_iter=6, seed=1)
    )
    wait_until(webui, lambda now: bool(now["state"]["job_no"] >= 1))
    assert webui.interrupt() == {}
    thread.join(DEADLINE)
    (result,) = results
    assert 1 <= len(result.images) < 6
    assert len(result.info["infotexts"]) == len(result.images)
    assert webui.skip() is None
    assert webui.txt2img(prompt="a cat", width=64, height=64).image.size == (64, 64)


@pytest.mark.parametrize(("path", "answer"), [("interrupt", {}), ("skip", None)])
async def test_interrupted_before_the_first_picture(running: RunningApp, path: str, answer: Any) -> None:
    """The answer is a 200 without pictures; a job that waits is not touched, and idle nothing happens."""
    async with running(engine=NeverAnswers) as app:
        assert await app.post(API + path) == (200, answer)
        task = asyncio.create_task(app.post(API + "txt2img", **SHORT))

        async def runs() -> bool:
            return bool((await app.get(API + "progress"))[1]["state"]["job_count"] and app.scheduler.running)

        await eventually("it runs", runs)
        waiting, job = await start_job(app, "queued")
        assert await app.post(API + path) == (200, answer)
        status, body = await task
        assert (status, body["images"]) == (200, [])
        assert json.loads(body["info"])["infotexts"] == []
        assert not waiting.done()
        assert await app.post(API + path) == (200, answer)  # not of this dialect
        assert (await app.session.delete(f"{app.url}/v1/jobs/{job['id']}")).status == 200
        assert (await waiting)[0] == 499


async def test_progress_of_a_caller_sees_jobs_of_other_dialects(running: RunningApp) -> None:
    """One that runs, without a picture if so wished; one that waits while a model loads counts as well."""
    async with running(engine=SlowEngine, api_key=KEY) as app:
        app.session.headers["Authorization"] = f"Bearer {KEY}"
        task = asyncio.create_task(
            app.post(GENERATIONS, **{**SMALL, "n": 2}, stream_options={"preview": "proj"})
        )

        async def seen(**wanted: Any) -> Any:
            _, body = await app.get(API + "progress")
            return body if body["state"]["job_count"] else None

        first = await eventually("the job is seen", seen)
        assert (first["progress"], first["current_image"]) == (0.0, None)
        assert first["textinfo"] in (
            "waiting in the queue",
            "loading tiny-random.gguf",
            "loading tiny-random",
            None,
        )

        async def stepping() -> Any:
            _, body = await app.get(API + "progress")
            return body if body["current_image"] else None

        body = await eventually("there is a preview", stepping)
        assert body["state"]["sampling_step"] == 1
        assert body["progress"] == 0.25
        assert body["state"]["job_count"] == 2
        _, body = await app.get(API + "progress?skip_current_image=true")
        assert body["current_image"] is None
        assert (await task)[0] == 200
        assert (await app.get(API + "progress"))[1] == IDLE


async def test_shutdown_is_no_interrupt(running: RunningApp) -> None:
    """A request that the server's own end cuts short is told so."""
    async with running(engine=NeverAnswers) as app:
        task = asyncio.create_task(app.post(API + "txt2img", **SHORT))

        async def runs() -> bool:
            return bool(app.scheduler.running)

        await eventually("it runs", runs)
        await app.scheduler.drain(0)
        status, body = await task
    assert (status, body["error"]["code"]) == (503, "shutting_down")


# -- models, options and lists ------------------------------------------------------------------------


def test_client_switches_the_model(webui: webuiapi.WebUIApi, capsys: pytest.CaptureFixture[str]) -> None:
    """By the nearest title, by alias, by file name; requests that name none use it then."""
    assert webui.util_get_model_names() == ["Second", "by-reference", "glyph-128", "tiny-random"]
    webui.util_set_model("second")
    assert "model changed to Second" in capsys.readouterr().out
    assert webui.util_get_current_model() == "Second"
    assert webui.txt2img(prompt="a cat", width=64, height=64).info["sd_model_name"] == "Second"
    webui.set_options({"sd_model_checkpoint": "other"})
    assert webui.util_get_current_model() == "Second"
    assert webui.set_options({"sd_model_checkpoint": None, "samples_format": "jpg", "unknown": 1}) is None
    assert webui.set_options({"sd_model_checkpoint": "nothing"})["error"]["code"] == "model_not_found"
    assert webui.set_options({"sd_model_checkpoint": "sd-turbo"})["error"]["code"] == "model_not_downloaded"
    assert webui.set_options({"sd_model_checkpoint": 7})["error"]["code"] == "invalid_request"
    assert webui.util_get_current_model() == "Second"
    assert webui.get_options()["samples_format"] == "png"


def test_client_reads_the_lists(webui: webuiapi.WebUIApi, equipped: ServerProcess, model_dir: Path) -> None:
    """Every list that the client knows is there, in its shape, without a path."""
    assert webui.util_get_sampler_names() == sorted(
        ["Euler a", "Euler", "Heun", "DPM2", "DPM++ 2S a", "DPM++ 2M", "DPM++ 2M v2", "IPNDM", "IPNDM_V",
         "LCM", "DDIM", "TCD", "Res Multistep", "Res 2S", "ER SDE"]
    )  # fmt: skip
    assert {"automatic", "karras", "sgm_uniform"} < set(webui.util_get_scheduler_names())
    assert [each["name"] for each in webui.get_loras()] == ["ink"]
    upscalers = [each["name"] for each in webui.get_upscalers()]
    assert upscalers == ["None", "Lanczos", "Nearest", "R-ESRGAN 4x+", "double"]
    assert {"name": "Latent (nearest-exact)"} in webui.get_latent_upscale_modes()
    assert webui.get_scripts() == {"txt2img": [], "img2img": []}
    assert webui.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert webui.get_cmd_flags()["api"] is True
    ram = webui.get_memory()["ram"]
    assert 0 < ram["free"] <= ram["total"] == ram["free"] + ram["used"]
    assert webui.refresh_checkpoints() is None
    for empty in (
        webui.get_sd_vae, webui.get_hypernetworks, webui.get_face_restorers, webui.get_realesrgan_models,
        webui.get_prompt_styles,
    ):  # fmt: skip
        assert empty() == []
    models = {each["model_name"]: each for each in webui.get_sd_models()}
    assert models["tiny-random"] == {
        "title": "tiny-random", "model_name": "tiny-random", "hash": None, "sha256": None,
        "filename": "tiny-random.gguf", "config": None,
    }  # fmt: skip
    for name in GET:
        text = webui.session.get(f"{equipped.url}{API}{name}").text
        assert str(model_dir.parent) not in text


async def test_a_model_with_a_known_hash(running: RunningApp, model_dir: Path, tmp_path: Path) -> None:
    """Its title has the short hash, and title, hash and file name all find it."""
    sha256 = "ab12" * 16
    source = {"repo": "someone/something", "file": "tiny-random.gguf", "sha256": sha256}
    entry = {"family": "ovis-image", "files": {"taesd": "tiny-random-tae.gguf", "model": source}}
    catalog = tmp_path / "more.yaml"
    catalog.write_text(json.dumps({"version": 1, "models": {"hashed": entry}}))
    models_dir = tmp_path / "models"
    folder = models_dir / "someone" / "something"
    folder.mkdir(parents=True)
    for file in ("tiny-random.gguf", "tiny-random-tae.gguf"):
        (models_dir / file).symlink_to(model_dir / file)
        (folder / file).symlink_to(model_dir / file)
    async with running(engine=QuickEngine, catalog=catalog, models_dir=models_dir) as app:
        _, models = await app.get(API + "sd-models")
        (model,) = [each for each in models if each["model_name"] == "hashed"]
        assert model["title"] == f"hashed [{sha256[:10]}]"
        assert (model["hash"], model["sha256"], model["filename"]) == (
            sha256[:10],
            sha256,
            "tiny-random.gguf",
        )
        for name in (model["title"], sha256, sha256[:10], "hashed", "tiny-random [0123456789]"):
            body = await txt2img(app, override_settings={"sd_model_checkpoint": name})
            info = json.loads(body["info"])
            expected = ("tiny-random", "") if name.startswith("tiny") else ("hashed", sha256[:10])
            assert (info["sd_model_name"], info["sd_model_hash"]) == expected


async def test_unload_and_reload(running: RunningApp) -> None:
    """The memory is freed, and the default model comes back on wish."""
    async with running(engine=QuickEngine) as app:

        async def loaded() -> bool:
            return bool(app.service.pool.entries)

        async def unloaded() -> bool:
            return not app.service.pool.entries

        await eventually("it is loaded", loaded)
        assert await app.post(API + "unload-checkpoint") == (200, {})
        await eventually("it is unloaded", unloaded)
        assert await app.post(API + "reload-checkpoint") == (200, {})
        await eventually("it is loaded again", loaded)


async def test_unknown_paths_and_methods(running: RunningApp) -> None:
    """An ordinary 404, and 405 for the other method; every listed path exists."""
    async with running(engine=QuickEngine) as app:
        assert (await app.get(API + "nothing"))[0] == 404
        assert (await app.get(API + "txt2img"))[0] == 405
        for name in GET:
            assert (await app.get(API + name))[0] == 200, name
        for name in POST:
            status, body = await app.post(API + name)
            assert status in (200, 400), name
            assert status == 200 or body["detail"]


# -- extras and png-info ------------------------------------------------------------------------------


def test_client_enlarges_by_a_model(webui: webuiapi.WebUIApi) -> None:
    """By a factor, to a size that is cropped or not, and several at once."""
    image = noise(32, 16)
    result = webui.extra_single_image(image, upscaler_1="double", upscaling_resize=2)
    assert result.image.size == (64, 32)
    assert result.info == ""
    repeated = image.resize((64, 32), Image.Resampling.NEAREST)
    difference = np.abs(np.asarray(result.image).astype(int) - np.asarray(repeated).astype(int))
    assert difference.max() <= 2
    to_size = {"resize_mode": 1, "upscaling_resize_w": 60, "upscaling_resize_h": 60, "upscaler_1": "double"}
    assert webui.extra_single_image(image, **to_size).image.size == (60, 60)
    assert webui.extra_single_image(image, **to_size, upscaling_crop=False).image.size == (120, 60)
    batch = webui.extra_batch_images([image, noise(16, 16)], upscaler_1=webuiapi.Upscaler.ESRGAN_4x)
    assert [each.size for each in batch.images] == [(64, 32), (32, 32)]
    assert webui.extra_single_image(image, upscaler_1="double", upscaling_resize=0.5).image.size == (16, 8)


def test_client_enlarges_without_a_model(webui: webuiapi.WebUIApi) -> None:
    """By Pillow's kernels; "None" leaves the picture as it is, as in the original."""
    image = noise(32, 16)
    nearest = webui.extra_single_image(image, upscaler_1=webuiapi.Upscaler.Nearest, upscaling_resize=3)
    assert nearest.image.tobytes() == image.resize((96, 48), Image.Resampling.NEAREST).tobytes()
    lanczos = webui.extra_batch_images([image, image], upscaler_1="Lanczos", upscaling_resize=1.5)
    assert [each.size for each in lanczos.images] == [(48, 24)] * 2
    assert webui.extra_single_image(image).image.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"upscaler_1": "LDSR"}, "known: None, Lanczos, Nearest"),
        ({"upscaler_1": "../double"}, "no upscaler"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": 9}, "less than or equal to 8"),
        ({"upscaler_1": "Lanczos", "upscaling_resize": float("nan")}, "finite"),
        ({"upscaler_1": "Lanczos", "resize_mode": 1, "upscaling_resize_w": 4000}, "times is too much"),
        ({"upscaler_1": "Nearest", "resize_mode": 1, "upscaling_resize_w": 60000}, "pixels allowed"),
        ({"image": "aGVsbG8="}, "Invalid image"),
        ({"image": None}, "an image is needed"),
    ],
)
async def test_extras_have_their_limits(running: RunningApp, fields: dict[str, Any], words: str) -> None:
    """Unknown upscalers, sizes without bound and what is no picture are refused."""
    async with running(engine=QuickEngine) as app:
        body = json.dumps({"image": data_url(png(noise(32, 16))), **fields})
        async with app.session.post(app.url + API + "extra-single-image", data=body) as answer:
            assert answer.status == 400
            assert words in (await answer.json())["detail"]
        assert (await app.post(API + "extra-batch-images"))[0] == 400


def test_client_reads_what_is_in_a_picture(webui: webuiapi.WebUIApi) -> None:
    """The text as it is and in its parts; a picture without one has none."""
    made = webui.txt2img(prompt="a cat, sitting", negative_prompt="dull", width=96, height=64, seed=9)
    told = webui.png_info(made.image)
    assert told.info == made.info["infotexts"][0]
    assert told.parameters["Prompt"] == "a cat, sitting"
    assert told.parameters["Negative prompt"] == "dull"
    assert (told.parameters["Seed"], told.parameters["Size-1"], told.parameters["Size-2"]) == (
        "9",
        "96",
        "64",
    )
    nothing = webui.png_info(noise(16, 16))
    assert (nothing.info, nothing.parameters) == ("", {})


# -- who may call -------------------------------------------------------------------------------------


def test_client_logs_in(serve: Callable[..., ServerProcess]) -> None:
    """By HTTP Basic with the key as password or as user name; a wrong one is a 401."""
    server = serve("--api-key", KEY)
    for user, password, status in (("me", KEY, 200), (KEY, "x", 200), ("me", "wrong", 401)):
        webui = connect(server.url, username=user, password=password)
        answer = webui.session.get(webui.baseurl + "/samplers")
        assert answer.status_code == status
        webui.session.close()


def basic(text: bytes) -> str:
    return f"Basic {base64.b64encode(text).decode()}"


@pytest.mark.parametrize(
    ("header", "path", "status"),
    [
        (basic(f"me:{KEY}".encode()), API + "samplers", 200),
        (basic(f"{KEY}:".encode()), API + "samplers", 200),
        (basic(KEY.encode()), API + "samplers", 200),
        (f"Bearer {KEY}", API + "samplers", 200),
        (basic(f"me:{KEY}x".encode()), API + "samplers", 401),
        (basic(b":"), API + "samplers", 401),
        (basic(b""), API + "samplers", 401),
        (basic(b"\xff\xfe:\xff"), API + "samplers", 401),
        ("Basic !!!", API + "samplers", 401),
        ("Basic käse", API + "samplers", 401),
        ("", API + "samplers", 401),
        (basic(f"me:{KEY}".encode()), "/v1/models", 401),
        (basic(f"me:{KEY}".encode()), "/sdapi", 401),
    ],
)
async def test_basic_is_for_this_dialect_only(
    running: RunningApp, header: str, path: str, status: int
) -> None:
    """And a refusal says which scheme is wanted."""
    headers = {"Authorization": header}
    async with (
        running(engine=QuickEngine, api_key=KEY) as app,
        app.session.get(app.url + path, headers=headers) as answer,
    ):
        assert answer.status == status
        assert KEY not in await answer.text()
        if status == 401:
            scheme = "Basic" if path.startswith(API) else "Bearer"
            assert answer.headers["WWW-Authenticate"] == f'{scheme} realm="gguf_imagegen"'


async def test_a_browser_that_has_logged_in_is_not_used_by_other_pages(running: RunningApp) -> None:
    """It sends Basic by itself, so a foreign origin is refused; an own one and none are not."""
    async with running(engine=QuickEngine, api_key=KEY) as app:
        for origin, status in (("http://evil.example", 403), (app.url, 200), (None, 200)):
            headers = {"Authorization": basic(f"me:{KEY}".encode()), **({"Origin": origin} if origin else {})}
            async with app.session.post(app.url + API + "interrupt", headers=headers) as answer:
                assert answer.status == status


def test_errors_of_this_dialect_are_those_of_the_server() -> None:
    """Each has `detail`, which FastAPI's clients read."""
    assert ImagegenError("x").body()["detail"] == "x"
