"""The documents of the servers whose dialects are spoken here, statement by statement: what they print works.

OpenVINO Model Server: docs/model_server_rest_api_image_generation.md, docs/image_generation/reference.md and
demos/image_generation of its repository; vLLM-Omni: docs/serving; GPUStack: docs/user-guide; Xinference:
doc/source/models/model_abilities/image.rst.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from xinference_client import RESTfulClient

from gguf_imagegen.catalog.catalog import load_catalog
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.planning.parts import chosen_parts
from gguf_imagegen.planning.plan import plan
from gguf_imagegen.planning.request import parse_request
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import InvalidRequest, MissingComponent
from tests.api.client import GENERATIONS, SMALL, noise, picture, png, read_stream
from tests.conftest import App, RunningApp
from tests.fake_engines import CrashesAtStep, QuickEngine
from tests.weights import write_lora


def known(name: str) -> Entry:
    """A model of the built-in catalog."""
    return load_catalog(Path("nowhere")).get(name)


@dataclass(frozen=True)
class Says:
    """A statement: a request to a model of the catalog, and what its plan must be."""

    model: str
    request: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    steps: int | None = None
    cfg: float | None = None
    guidance: float | None = None
    warning: str | None = None
    image: tuple[int, int] | None = None


QWEN, EDIT = "Qwen/Qwen-Image", "Qwen/Qwen-Image-Edit-2509"
NO_CFG = "guidance_scale: has no effect on qwen-image; its CFG is true_cfg_scale"
STATEMENTS = [
    # vLLM-Omni: text_to_image/README.md, image_edit_api.md
    Says(QWEN, size=(1024, 1024), steps=50, cfg=4.0),
    Says(QWEN, {"guidance_scale": 1}, cfg=4.0),
    Says(QWEN, {"guidance_scale": 7}, cfg=4.0, warning=NO_CFG),
    Says(QWEN, {"true_cfg_scale": 2.5, "guidance_scale": 1}, cfg=2.5),
    Says("Tongyi-MAI/Z-Image-Turbo", steps=9, cfg=1.0),
    Says("black-forest-labs/FLUX.1-dev", {"guidance_scale": 5}, cfg=1.0, guidance=5.0),
    Says(EDIT, image=(800, 600), size=(1152, 864), steps=50, cfg=4.0),
    Says(EDIT, image=(1920, 1080), size=(1344, 768)),
    Says(EDIT, {"size": "auto"}, image=(1080, 1920), size=(768, 1344)),
    Says("Tongyi-MAI/Z-Image", image=(800, 600), size=(1152, 864)),
    # OpenVINO Model Server: parameters of the two pages
    Says("OpenVINO/stable-diffusion-v1-5-int8-ov", {"num_inference_steps": 7}, steps=7, size=(512, 512)),
    Says(
        "stable-diffusion-v1-5",
        {"prompt_2": "b", "prompt_3": "c"},
        warning="prompt_2, prompt_3: no effect; the engine gives one prompt to all text encoders of a model",
    ),
    Says(
        "stable-diffusion-v1-5",
        {"max_sequence_length": 256},
        warning="max_sequence_length: no effect; the engine always encodes the whole prompt",
    ),
    Says("stable-diffusion-v1-5", {"strength": 0.5}, warning="strength: has no effect without an image"),
    # GPUStack: model catalog
    Says("TencentARC/FLUX.1-mini", {"size": "512x512"}, size=(512, 512)),
    Says("Freepik/FLUX.1-lite", {"sample_steps": 8}, steps=8),
]


@pytest.mark.parametrize("says", STATEMENTS, ids=lambda says: f"{says.model} {says.request or says.image}")
def test_statement(says: Says) -> None:
    """One row of the table."""
    image = {"image": png(noise(*says.image))} if says.image else {}
    request, warnings = parse_request({"prompt": "a", **says.request, **image})
    made = plan(request, known(says.model), Settings(), "edit" if image else "generation", warnings)
    assert says.size in (None, made.delivered)
    assert says.steps in (None, made.spec.steps)
    assert says.cfg in (None, made.spec.cfg_scale)
    assert says.guidance in (None, made.spec.guidance)
    assert list(made.warnings) == ([says.warning] if says.warning else [])


def test_t5_is_left_out_where_the_family_allows() -> None:
    """diffusers' `text_encoder_3=None` on SD3; FLUX keeps it and says so."""
    request, _ = parse_request({"prompt": "a", "text_encoder_3": None})
    entry = known("sd3.5-medium")
    assert "t5xxl" in entry.files
    without, notes = chosen_parts(request, entry)
    assert ("t5xxl" in without.files, without == entry, notes) == (False, False, [])
    flux = known("flux.1-dev")
    assert chosen_parts(request, flux) == (flux, ["t5xxl: flux.1-dev cannot do without T5; it was kept"])


def test_a_component_can_be_none(model_dir: Path) -> None:
    """`--component ROLE=none` leaves a file out; what the family needs is asked for."""
    settings = Settings(models_dir=model_dir, model="tiny-random", component=("taesd=none",))
    with pytest.raises(MissingComponent, match=r"lacks an image decoder"):
        choose_models(settings)
    settings = Settings(
        models_dir=model_dir, model=str(model_dir / "tiny-random.gguf"), component=("vae=none",)
    )
    catalog, name = choose_models(settings)
    assert set(catalog.get(name).files) == {"model", "taesd"}


# -- names --------------------------------------------------------------------------------------------

CATALOG = """\
version: 1
models:
  one: {aliases: [Org/One], family: ovis-image, files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}}
  two: {family: ovis-image, files: {model: tiny-random.gguf, taesd: tiny-random-tae.gguf}}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.yaml"
    path.write_text(CATALOG)
    return path


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"model": "Org/One"}, "Org/One"),
        ({"model": "one"}, "one"),
        ({"model": "one", "served_model_name": "drawer,second"}, "drawer"),
    ],
)
async def test_the_served_name_is_said_everywhere(
    running: RunningApp, catalog: Path, settings: dict[str, Any], name: str
) -> None:
    """Config, health, the model list and answers have it, and another model's request changes nothing."""
    async with running(engine=QuickEngine, catalog=catalog, **settings) as app:
        for asked, said in ((None, name), ("two", "two"), (None, name)):
            status, body = await app.post(GENERATIONS, **SMALL, model=asked)
            assert (status, body["model"]) == (200, said)
            for path in ("/v1/config", "/v3/config"):
                assert name in (await app.get(path))[1]
            assert (await app.get("/health"))[1]["model"] == name
        _, listed = await app.get("/v1/models")
        assert name in [each["id"] for each in listed["data"]]
        for path in (f"/v1/models/{name}", f"/v3/models/{name}", f"/v1-openai/models/{name}"):
            assert (await app.get(path))[1]["id"] == name


async def test_an_alias_of_the_request_is_answered(running: RunningApp, catalog: Path) -> None:
    """The answer repeats the name that was asked for, streams too."""
    async with running(engine=QuickEngine, catalog=catalog, model="two") as app:
        _, body = await app.post(GENERATIONS, **SMALL, model="Org/One")
        assert body["model"] == "Org/One"
        asked = {**SMALL, "model": "Org/One", "stream": True}
        async with app.session.post(app.url + GENERATIONS, json=asked) as answer:
            stream = read_stream(await answer.text())
        assert {event.data["model"] for event in stream.events[:-1]} == {"Org/One"}


def test_a_served_name_is_no_other_model(catalog: Path, model_dir: Path) -> None:
    settings = Settings(models_dir=model_dir, catalog=catalog, model="one", served_model_name=("two",))
    with pytest.raises(InvalidRequest, match="another model of the catalog"):
        choose_models(settings)


# -- requests as printed ------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def quick(running: RunningApp) -> AsyncIterator[App]:
    async with running(engine=QuickEngine) as app:
        yield app


XINFERENCE = '{\n "prompt": "an apple", "size": "64x64", "steps": 1, // few\n}'
GPUSTACK = """{
    // Required
    "prompt": "A \\"lovely\\" cat, // not a comment",
    "size": "64x64",  // or "512x512", don't ask for more
    "sample_steps": 1,
}"""


@pytest.mark.parametrize("text", [XINFERENCE, GPUSTACK])
async def test_printed_json_is_forgiven(quick: App, text: str) -> None:
    """Trailing commas and comments, as Xinference's and GPUStack's pages print them, with a warning."""
    async with quick.session.post(quick.url + GENERATIONS, data=text.encode()) as answer:
        body = await answer.json()
    assert answer.status == 200, body
    assert body["warnings"] == ["the body is no strict JSON: comments and trailing commas were ignored"]
    _, jobs = await quick.get("/v1/jobs")
    assert "apple" in text or jobs["data"][0]["parameters"]["prompt"] == 'A "lovely" cat, // not a comment'


@pytest.mark.parametrize(("wanted", "null"), [("b64_json", "url"), ("url", "b64_json")])
async def test_what_is_not_asked_for_is_null(quick: App, wanted: str, null: str) -> None:
    """vLLM-Omni's answer: `"url": null` beside `b64_json`."""
    _, body = await quick.post(GENERATIONS, **SMALL, response_format=wanted)
    (item,) = body["data"]
    assert item[wanted]
    assert (item[null], item["revised_prompt"]) == (None, None)


async def test_a_file_is_answered(quick: App) -> None:
    """vLLM-Omni's `response_format: "file"`: the picture itself, with its name; several are a ZIP archive."""
    async with quick.session.post(
        quick.url + GENERATIONS, json={**SMALL, "response_format": "file"}
    ) as answer:
        assert picture(await answer.read()).size == (64, 64)
        assert answer.content_type == "image/png"
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="job_')
    asked = {**SMALL, "response_format": "file", "n": 2, "output_format": "webp"}
    async with quick.session.post(quick.url + GENERATIONS, json=asked) as answer:
        archive = zipfile.ZipFile(io.BytesIO(await answer.read()))
    assert [picture(archive.read(name)).format for name in archive.namelist()] == ["WEBP", "WEBP"]


async def test_errors_within_gpustacks_streams_have_numbers(running: RunningApp) -> None:
    """Under /v1-openai the code is the HTTP status there, too; elsewhere it stays a word."""
    async with running(engine=CrashesAtStep) as app:
        for path, code in (("/v1-openai/images/generations", 500), (GENERATIONS, "worker_crashed")):
            asked = {**SMALL, "steps": 3, "stream": True}
            async with app.session.post(app.url + path, json=asked) as answer:
                stream = read_stream(await answer.text())
            error = stream.events[-1].data["error"]
            assert (stream.events[-1].event, error["code"]) == ("error", code)
            assert error.get("reason", "worker_crashed") == "worker_crashed"


@pytest.mark.parametrize("header", ["x-gpustack-model", "X-Target-Port"])
async def test_gpustacks_gateway_gets_pieces(quick: App, header: str) -> None:
    """Through the gateway pictures come in pieces of llama-box's, each frame in a write of its own."""
    asked = {**SMALL, "size": "256x256", "stream": True, "output_format": "jpeg"}
    sdk = {header: "m", "x-stainless-lang": "python"}
    async with quick.session.post(quick.url + GENERATIONS, json=asked, headers=sdk) as answer:
        writes, held = list[bytes](), b""
        async for data, ends in answer.content.iter_chunks():
            held += data
            if ends:
                writes, held = [*writes, held] if held else writes, b""
    assert [data for data in writes if data.count(b"\n\n") != 1 or not data.endswith(b"\n\n")] == []
    items = read_stream(b"".join(writes).decode()).items
    assert "".join(item.get("b64_json", "") for item in items)
    assert [item["finish_reason"] for item in items][-1] == "stop"
    assert all(item["object"] == "image.chunk" for item in items)


# -- administrators -----------------------------------------------------------------------------------


async def test_administrators_minima(running: RunningApp) -> None:
    """ "Administrator defined min/max parameter value requirements" hold; defaults can be set."""
    least = {
        "min_steps": 2,
        "min_side": 128,
        "min_pixels": 128 * 256,
        "default_size": "256x128",
        "default_steps": 3,
    }
    async with running(engine=QuickEngine, **least) as app:
        for asked, words in (
            ({"steps": 1}, "at least 2"),
            ({"size": "64x512"}, "at least 128 a side"),
            ({"size": "128x128"}, "and 32768 pixels"),
        ):
            status, body = await app.post(GENERATIONS, prompt="a", **asked)
            assert status == 400
            assert words in body["detail"]
        status, body = await app.post(GENERATIONS, prompt="a")
        assert (status, body["size"], body["data"][0]["steps"]) == (200, "256x128", 3)
        limits = (await app.get("/v1/models/tiny-random"))[1]["meta"]["limits"]
        assert (limits["min_side"], limits["min_pixels"], limits["min_steps"]) == (128, 32768, 2)


# -- LoRAs as models: OpenVINO Model Server of May 2026 ------------------------------------------------


async def test_a_lora_as_the_model(running: RunningApp, tmp_path: Path) -> None:
    """Its name, or a mixture's, is a model; `lora_alphas` overrides weights of those that it has."""
    for name in ("xray", "DD-ukiyo-v1"):
        write_lora(tmp_path / f"{name}.gguf")
    names = "ukiyo=DD-ukiyo-v1,blend=@xray:0.5+@ukiyo:0.4"
    async with running(engine=QuickEngine, lora_dir=tmp_path, lora_names=names) as app:
        for model, alphas, said in (
            ("xray", {}, "xray: 1"),
            ("xray", {"xray": 0.5}, "xray: 0.5"),
            ("blend", {}, "xray: 0.5, DD-ukiyo-v1: 0.4"),
            ("blend", {"ukiyo": 0.2}, "xray: 0.5, DD-ukiyo-v1: 0.2"),
        ):
            status, body = await app.post(GENERATIONS, **SMALL, model=model, lora_alphas=alphas)
            assert (status, body.get("model")) == (200, model), body
            _, job = await app.get(f"/v1/jobs/{body['id']}")
            assert (job["settings"]["LoRA"], job["model"]) == (said, "tiny-random")
        status, body = await app.post(GENERATIONS, **SMALL, model="blend", lora_alphas={"other": 1})
        assert (status, body["error"]["param"]) == (400, "lora_alphas")
        status, body = await app.post(GENERATIONS, **SMALL, model="nothing")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


def test_what_is_no_lora_name() -> None:
    for words in (("x",), ("x=",), ("x=@a:b",)):
        with pytest.raises(InvalidRequest, match="lora_names"):
            choose_adapters(words)


def choose_adapters(words: tuple[str, ...]) -> object:
    from gguf_imagegen.planning.adapters import adapters_of

    return adapters_of(words)


# -- Xinference ---------------------------------------------------------------------------------------


async def test_xinferences_client_manages_models(quick: App) -> None:
    """launch_model, list_models, describe_model, terminate_model and the registrations, by its own client."""

    def run() -> None:
        client = RESTfulClient(quick.url)
        uid = client.launch_model("tiny-random", model_type="image", model_engine="x", replica=1)
        assert uid == "tiny-random"
        assert client.get_launch_model_progress(uid) == {"progress": 1.0}
        assert client.list_models()[uid]["meta"]["state"] == "loaded"
        assert client.describe_model(uid)["model_type"] == "image"
        made = client.get_model(uid).text_to_image("an apple", size="64*64", num_inference_steps=1)
        assert made["data"][0]["url"]
        client.terminate_model(uid)
        names = [each["model_name"] for each in client.list_model_registrations("image")]
        assert "tiny-random" in names
        assert client.list_model_registrations("LLM") == []
        said = client.get_model_registration("image", "tiny-random")
        assert (said["model_family"], said["cache_status"]) == ("ovis-image", True)
        with pytest.raises(RuntimeError, match="not on this machine"):
            client.launch_model("sd-1.5", model_type="image")

    import asyncio

    await asyncio.to_thread(run)
