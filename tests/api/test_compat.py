"""The recipes of OpenVINO Model Server, GPUStack, llama-box and Xinference, run as their pages have them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from PIL import Image
from xinference_client import RESTfulClient

from gguf_imagegen.api.keys import REQUEST_IDS
from gguf_imagegen.commands.testmodel import write_test_model
from tests.api.client import (
    GENERATIONS,
    SMALL,
    data_url,
    eventually,
    job_in_state,
    noise,
    picture,
    png,
    read_stream,
)
from tests.api.recipes import ours, python, shell
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import NeverLoads, QuickEngine, SlowEngine

pytestmark = pytest.mark.posix


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands, with the pictures that the recipes name."""
    for name in ("three_cats.png", "otter.png", "image.png"):
        (tmp_path / name).write_bytes(png(noise(64, 64)))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    (tmp_path / "mask.png").write_bytes(png(mask))
    (tmp_path / "broken.png").write_bytes(png(noise(64, 64))[:500])
    return tmp_path


def saved(path: Path) -> Image.Image:
    return picture(path.read_bytes())


# -- OpenVINO Model Server ----------------------------------------------------------------------------
# https://github.com/openvinotoolkit/model_server/blob/main/demos/image_generation/README.md


OVMS_GENERATE = """
curl http://localhost:8000/v3/images/generations \\
  -H "Content-Type: application/json" \\
  -d '{
    "model": "OpenVINO/FLUX.1-schnell-int4-ov",
    "prompt": "three happy cats",
    "num_inference_steps": 3,
    "size": "512x512"
  }'| jq -r '.data[0].b64_json' | base64 --decode > output.png
"""
OVMS_PYTHON = """
from openai import OpenAI
import base64
from io import BytesIO
from PIL import Image

client = OpenAI(
    base_url="http://localhost:8000/v3",
    api_key="unused"
)

response = client.images.generate(
            model="OpenVINO/FLUX.1-schnell-int4-ov",
            prompt="three happy cats",
            extra_body={
                "rng_seed": 43,
                "num_inference_steps": 3
            }
        )
base64_image = response.data[0].b64_json

image_data = base64.b64decode(base64_image)
image = Image.open(BytesIO(image_data))
image.save('output2.png')
"""
# docs/model_server_rest_api_image_edit.md of the same repository
OVMS_EDIT = """
curl -X POST http://localhost:8000/v3/images/edits \\
  -F "model=OpenVINO/stable-diffusion-v1-5-fp16-ov" \\
  -F "image=@three_cats.png" \\
  -F "strength=0.7" \\
  -F 'prompt=Three zebras' \\
  | jq -r '.data[0].b64_json' | base64 --decode > edit.png
"""
OVMS_EDIT_FOUR = """
curl -X POST http://localhost:8000/v3/images/edits \\
  -F "model=OpenVINO/stable-diffusion-v1-5-fp16-ov" \\
  -F "image=@three_cats.png" \\
  -F "strength=0.7" \\
  -F "prompt=Three zebras" \\
  -F "n=4" \\
  | jq -r '.data[].b64_json' \\
  | awk '{print > ("img" NR ".b64") } END { for(i=1;i<=NR;i++) system("base64 --decode img" i ".b64 > edit" i ".png && rm img" i ".b64") }'
"""  # noqa: E501


async def test_ovms_curl_generates(quick: App, served: ServerProcess, folder: Path) -> None:
    """The demo's curl writes the picture of the asked size, and a small one is a real one."""
    await shell(ours(OVMS_GENERATE, quick.url), folder)
    assert saved(folder / "output.png").size == (512, 512)
    await shell(ours(OVMS_GENERATE, served.url).replace("512x512", "64x64"), folder)
    assert saved(folder / "output.png").size == (64, 64)


async def test_ovms_python_generates(
    served: ServerProcess, folder: Path, session: aiohttp.ClientSession
) -> None:
    """The demo's client code works; rng_seed and num_inference_steps are the seed and the steps."""
    await python(ours(OVMS_PYTHON, served.url), folder)
    body = {"prompt": "three happy cats", "seed": 43, "steps": 3}
    async with session.post(served.url + GENERATIONS, json=body) as answer:
        (item,) = (await answer.json())["data"]
    assert saved(folder / "output2.png").tobytes() == picture(item["b64_json"]).tobytes()


async def test_ovms_curls_edit(served: ServerProcess, folder: Path) -> None:
    """The edit page's two commands write one picture and four different ones."""
    await shell(ours(OVMS_EDIT, served.url), folder)
    assert saved(folder / "edit.png").size == (128, 128)
    await shell(ours(OVMS_EDIT_FOUR, served.url), folder)
    assert len({saved(folder / f"edit{i}.png").tobytes() for i in (1, 2, 3, 4)}) == 4


async def test_ovms_extra_fields(served: ServerProcess, session: aiohttp.ClientSession) -> None:
    """The fields of OVMS's table mean what they mean there, or are named in a warning."""
    body = {
        **SMALL, "num_images_per_prompt": 2, "guidance_scale": 2.5, "negative_prompt": "fog", "rng_seed": 4,
        "num_inference_steps": 1, "prompt_2": "a dog", "max_sequence_length": 256,
    }  # fmt: skip
    body.pop("steps")
    async with session.post(f"{served.url}/v3/images/generations", json=body) as answer:
        made = await answer.json()
    assert [(item["seed"], item["steps"], item["cfg_scale"]) for item in made["data"]] == [
        (4, 1, 2.5),
        (5, 1, 2.5),
    ]
    assert [warning.split(":")[0] for warning in made["warnings"]] == ["max_sequence_length", "prompt_2"]


async def test_what_ovms_does_not_support(served: ServerProcess, session: aiohttp.ClientSession) -> None:
    """Everything that OVMS's page lists as unsupported works on its paths."""
    body = {
        **SMALL, "output_format": "jpeg", "output_compression": 50, "quality": "low", "style": "vivid",
        "response_format": "url", "background": "auto", "moderation": "low", "user": "me", "n": 2,
    }  # fmt: skip
    async with session.post(f"{served.url}/v3/images/generations", json=body) as answer:
        made = await answer.json()
    assert made["created"] > 1_700_000_000
    assert made["usage"]["generation_per_second"] > 0
    for item in made["data"]:
        async with session.get(item["url"]) as answer:
            assert picture(await answer.read()).format == "JPEG"

    async with openai.AsyncOpenAI(base_url=f"{served.url}/v3", api_key="unused") as client:
        assert [model.id async for model in client.models.list()].count("tiny-random") == 1
        generated = await client.images.generate(
            prompt="a cat", stream=True, partial_images=2, extra_body={**SMALL, "steps": 4}
        )
        edited = await client.images.edit(
            image=png(noise(64, 64)),
            prompt="a cat",
            stream=True,
            partial_images=1,
            extra_body={"size": "64x64"},
        )
        assert [event.type async for event in generated] == [
            "image_generation.partial_image",
            "image_generation.partial_image",
            "image_generation.completed",
        ]
        assert [event.type async for event in edited] == ["image_edit.partial_image", "image_edit.completed"]

    form = aiohttp.FormData()
    form.add_field("image", png(noise(64, 64)), filename="a.png")
    async with session.post(f"{served.url}/v3/images/variations", data=form) as answer:
        (item,) = (await answer.json())["data"]
    assert picture(item["b64_json"]).size == (128, 128)


@pytest.mark.parametrize("path", ["/v1/config", "/v3/config"])
async def test_ovms_readiness(served: ServerProcess, folder: Path, path: str) -> None:
    """The readiness check names the models that can be asked for, and only those."""
    said = json.loads(await shell(f"curl --silent {served.url}{path}", folder))
    ready = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": "OK"}}
    assert said["tiny-random"] == {"model_version_status": [ready]}
    assert "sd-turbo" not in said


async def in_state(app: App, state: str, error_code: str) -> bool:
    """Whether the readiness check says so of the tiny model."""
    _, said = await app.get("/v1/config")
    (version,) = said["tiny-random"]["model_version_status"]
    return bool((version["state"], version["status"]["error_code"]) == (state, error_code))


async def test_ovms_readiness_while_loading_and_without_files(running: RunningApp, tmp_path: Path) -> None:
    """A model that loads is not AVAILABLE yet; the default model without files is told as such."""
    async with running(engine=NeverLoads) as app:
        await eventually("the model is LOADING", partial(in_state, app, "LOADING", "OK"))
    write_test_model(tmp_path)
    async with running(engine=QuickEngine, models_dir=tmp_path) as app:
        (tmp_path / "tiny-random.gguf").unlink()
        await eventually("the model is END", partial(in_state, app, "END", "NOT_FOUND"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"num_inference_steps": 6}, "steps"),
        ({"num_images_per_prompt": 3}, "n"),
        ({"size": "128x129"}, "size"),
    ],
)
async def test_ovms_administrators_limits(running: RunningApp, fields: dict[str, Any], param: str) -> None:
    """max_num_inference_steps, max_num_images_per_prompt and max_resolution have settings that refuse."""
    async with running(engine=QuickEngine, max_steps=5, max_images=2, max_pixels=128 * 128) as app:
        status, said = await app.post("/v3/images/generations", prompt="a cat", **fields)
    assert (status, said["error"]["param"]) == (400, param)


# -- GPUStack and llama-box ---------------------------------------------------------------------------
# https://github.com/gpustack/gpustack/blob/a655ad28/docs/user-guide/image-generation-apis.md


GPUSTACK_GENERATE = """
export GPUSTACK_API_KEY=myapikey
curl http://myserver/v1-openai/image/generate \\
    -H "Content-Type: application/json" \\
    -H "Authorization: Bearer $GPUSTACK_API_KEY" \\
    -d '{
        "n": 1,
        "response_format": "b64_json",
        "size": "512x512",
        "prompt": "A lovely cat",
        "quality": "standard",
        "stream": true,
        "stream_options": {
        "include_usage": true
        }
    }'
"""
GPUSTACK_EDIT = """
export GPUSTACK_API_KEY=myapikey
curl http://myserver/v1-openai/image/edit \\
    -H "Authorization: Bearer $GPUSTACK_API_KEY" \\
    -F image="@otter.png" \\
    -F mask="@mask.png" \\
    -F prompt="A lovely cat" \\
    -F n=1 \\
    -F size="512x512"
"""
ADVANCED = {
    "n": 1,
    "response_format": "b64_json",
    "size": "64x64",
    "prompt": "A lovely cat",
    "sampler": "euler",
    "schedule": "default",
    "seed": None,
    "cfg_scale": 4.5,
    "sample_steps": 20,
    "negative_prompt": "",
    "stream": True,
    "stream_options": {"include_usage": True},
}
"""The page's advanced options, at the size of the test model."""


def only_last_has_usage(text: str) -> None:
    """The frames of a llama-box stream that asked for include_usage."""
    stream = read_stream(text)
    assert [item["progress"] for item in stream.items][-1] == 100.0
    usages = [event.data["usage"] for event in stream.events[:-1]]
    assert all(usage is None for usage in usages[:-1])
    assert set(usages[-1]) == {"time_to_process_ms", "time_per_generation_ms", "generation_per_second"}


SILENT = 'curl() { command curl --silent --no-buffer "$@"; }\n'


async def test_gpustack_curl_generates(quick: App, served: ServerProcess, folder: Path) -> None:
    """The page's command streams the progress, the picture and the usage."""
    for url, size in ((quick.url, 512), (served.url, 64)):
        recipe = ours(GPUSTACK_GENERATE, url).replace("512x512", f"{size}x{size}")
        out = await shell(SILENT + recipe, folder)
        only_last_has_usage(out)
        assert picture(read_stream(out).items[-1]["b64_json"]).size == (size, size)


async def test_gpustack_curl_edits(quick: App, served: ServerProcess, folder: Path) -> None:
    """The page's command gives the asked size and keeps, byte for byte, what the mask keeps."""
    (item,) = json.loads(await shell(SILENT + ours(GPUSTACK_EDIT, quick.url), folder))["data"]
    assert picture(item["b64_json"]).size == (512, 512)
    small = ours(GPUSTACK_EDIT, served.url).replace("512x512", "64x64")
    (item,) = json.loads(await shell(SILENT + small, folder))["data"]
    before, after = np.asarray(saved(folder / "otter.png")), np.asarray(picture(item["b64_json"]))
    assert np.array_equal(after[:, 32:], before[:, 32:])
    assert not np.array_equal(after[:, :32], before[:, :32])


@pytest.mark.parametrize("path", ["images/generations", "image/generate"])
async def test_gpustack_advanced_json(
    served: ServerProcess, session: aiohttp.ClientSession, path: str
) -> None:
    """Every advanced option in JSON, with its null seed."""
    async with session.post(f"{served.url}/v1-openai/{path}", json=ADVANCED) as answer:
        text = await answer.text()
    only_last_has_usage(text)
    assert read_stream(text).items[-1]["progress_steps"] == 20


@pytest.mark.parametrize("path", ["images/edits", "image/edit"])
async def test_gpustack_advanced_form(
    served: ServerProcess, session: aiohttp.ClientSession, path: str
) -> None:
    """Every advanced option as a form; `seed=null` is random and `stream_options_include_usage` is heard."""
    form = aiohttp.FormData()
    form.add_field("image", png(noise(64, 64)), filename="a.png")
    for name, value in ADVANCED.items():
        if name != "stream_options":
            form.add_field(name, "null" if value is None else str(value).lower())
    form.add_field("stream_options_include_usage", "true")
    async with session.post(f"{served.url}/v1-openai/{path}", data=form) as answer:
        only_last_has_usage(await answer.text())


async def test_gpustack_lists_models(served: ServerProcess, folder: Path) -> None:
    """The list that a GPUStack client reads, and one of its entries."""
    listed = json.loads(await shell(f"curl --silent {served.url}/v1-openai/models", folder))
    one = json.loads(await shell(f"curl --silent {served.url}/v1-openai/models/tiny-random", folder))
    (same,) = [each for each in listed["data"] if each["id"] == "tiny-random"]
    assert {**one["meta"], "memory": None} == {**same["meta"], "memory": None}  # free memory changes


async def test_gpustack_illegal_image(served: ServerProcess, folder: Path) -> None:
    """An unreadable image gives GPUStack's words, and the number for a code; so does any other fault."""
    edit = ours(GPUSTACK_EDIT, served.url).replace("curl ", "curl --silent -F stream=true ")
    said = json.loads(await shell(edit.replace("otter.png", "broken.png"), folder))
    assert (
        said["error"] | {"code": 400, "message": "Invalid image", "type": "invalid_request_error"}
        == said["error"]
    )
    assert said["error"]["reason"] == "invalid_image"
    said = json.loads(await shell(edit.replace('size="512x512"', "size=9x99"), folder))
    assert (said["error"]["code"], said["error"]["reason"]) == (400, "invalid_size")
    assert said["detail"] == said["error"]["message"]
    for path in ("models/nothing", "nothing", "images/generations"):
        said = json.loads(await shell(f"curl --silent {served.url}/v1-openai/{path}", folder))
        assert said["error"]["code"] == (405 if path == "images/generations" else 404)


LLAMA_BOX_LOOP = r"""
show() {
    while IFS= read -r line; do
        if [[ "$line" == error:* ]]; then echo "Error: ${line:7}"; return 1; fi
        if [[ "$line" != data:* || "$line" == "data: [DONE]" ]]; then continue; fi
        frame="${line:5}"
        if [[ "$(jq -c .data <<<"$frame")" == null ]]; then echo "Error: $frame"; return 1; fi
        read -r index steps progress reason < <(
            jq -r '.data[0] | "\(.index) \(.progressed_steps) \(.progress) \(.finish_reason)"' <<<"$frame")
        printf '%i: %3.2f%%...\n' "$index" "$progress"
        piece="$(jq -r '.data[0].b64_json' <<<"$frame")"
        if [[ "$piece" == null ]]; then continue; fi
        echo "$piece" >>"image_${index}_${steps}.b64"
        if [[ "$reason" == stop ]]; then
            base64 -d "image_${index}_${steps}.b64" >"image_$index.png"
            echo "Generated image: image_$index.png $(jq -c .usage <<<"$frame")"
        fi
    done
}
"""
"""What llama-box's tools/image_generate.sh does: progress a frame, pieces joined by index and step."""


@pytest.mark.parametrize(
    "options", ['{"chunk_results": true, "chunk_size": 512, "include_usage": true}', '{"preview": true}']
)
async def test_llama_box_shell_loop(
    served: ServerProcess, folder: Path, session: aiohttp.ClientSession, options: str
) -> None:
    """curl, jq and base64 alone follow the stream and join the picture from its pieces."""
    asked = (
        '{"n": 2, "response_format": "b64_json", "size": "64x64", "prompt": "A lovely cat", "seed": 3,'
        f' "sample_method": "euler", "sampling_steps": 4, "stream": true, "stream_options": {options}}}'
    )
    out = await shell(
        f"{LLAMA_BOX_LOOP}\nshow < <(curl --silent --no-buffer --request POST"
        f' --url "{served.url}/v1/images/generations" --header "Content-Type: application/json"'
        f" --data '{asked}')",
        folder,
    )
    for index in (0, 1):
        assert f"{index}: 25.00%..." in out
        assert f"{index}: 100.00%...\nGenerated image: image_{index}.png" in out
        assert saved(folder / f"image_{index}.png").size == (64, 64)
    frames = sum(line.endswith("%...") for line in out.splitlines())
    assert frames > 8
    if "include_usage" in options:
        assert out.count("time_to_process_ms") == 1, "the very last frame alone has usage"
    body = {"size": "64x64", "prompt": "A lovely cat", "seed": 3, "sampler": "euler", "steps": 4, "n": 2}
    async with session.post(served.url + GENERATIONS, json=body) as answer:
        made = (await answer.json())["data"]
    for index in (0, 1):
        assert saved(folder / f"image_{index}.png").tobytes() == picture(made[index]["b64_json"]).tobytes()


# -- Xinference ---------------------------------------------------------------------------------------
# https://github.com/xorbitsai/inference/blob/main/doc/source/models/model_abilities/image.rst
# The forms are those of xinference/client/restful/restful_client.py.


XINFERENCE_GENERATE = """
curl --silent -X 'POST' \\
  'http://<XINFERENCE_HOST>:<XINFERENCE_PORT>/v1/images/generations' \\
  -H 'accept: application/json' \\
  -H 'Content-Type: application/json' \\
  -d '{
    "model": "<MODEL_UID>",
    "prompt": "an apple",
  }'
"""  # with the page's comma after the last field, which is no JSON and which Xinference itself refuses
XINFERENCE_PYTHON = """
import openai

client = openai.Client(
    api_key="cannot be empty",
    base_url="http://<XINFERENCE_HOST>:<XINFERENCE_PORT>/v1"
)
print(client.images.generate(
    model="<MODEL_UID>",
    prompt="an apple"
).data[0].url)
"""
XINFERENCE_VARIATION = """
curl --silent http://<XINFERENCE_HOST>:<XINFERENCE_PORT>/v1/images/variations \\
  -F model=<MODEL_UID> -F prompt="a lovely cat" -F n=1 -F size="64*64" -F response_format=b64_json \\
  -F kwargs='{"num_inference_steps": 3, "seed": 5, "negative_prompt": null}' \\
  -F "image=@image.png;type=application/octet-stream"
"""
XINFERENCE_INPAINTING = """
curl --silent http://<XINFERENCE_HOST>:<XINFERENCE_PORT>/v1/images/inpainting \\
  -F model=<MODEL_UID> -F prompt="a lovely cat" -F n=1 -F size="64*64" \\
  -F kwargs='{"num_inference_steps": 3, "seed": 5}' \\
  -F "image=@image.png;type=application/octet-stream" \\
  -F "mask_image=@mask.png;type=application/octet-stream"
"""


async def test_xinference_generates(served: ServerProcess, folder: Path) -> None:
    """The page's curl and client code."""
    (item,) = json.loads(await shell(ours(XINFERENCE_GENERATE, served.url), folder))["data"]
    assert picture(item["b64_json"]).size == (128, 128)
    url = (await python(ours(XINFERENCE_PYTHON, served.url), folder)).strip()
    await shell(f"curl --silent --output apple.png {url}", folder)
    assert saved(folder / "apple.png").size == (128, 128)


async def test_xinference_variation(served: ServerProcess, folder: Path) -> None:
    """The form of `image_to_image`: a prompt is welcome, and `kwargs` holds further fields."""
    made = json.loads(await shell(ours(XINFERENCE_VARIATION, served.url), folder))
    (item,) = made["data"]
    assert (item["steps"], item["seed"], item.get("url")) == (3, 5, None)
    assert picture(item["b64_json"]).size == (64, 64)
    assert made["warnings"] == []


async def test_xinference_inpainting(served: ServerProcess, folder: Path) -> None:
    """The form of `inpainting`: white is repainted, the rest kept, and the answer is a URL."""
    (item,) = json.loads(await shell(ours(XINFERENCE_INPAINTING, served.url), folder))["data"]
    assert item["b64_json"] is None
    await shell(f"curl --silent --output painted.png {item['url']}", folder)
    before, after = (np.asarray(saved(folder / name)) for name in ("image.png", "painted.png"))
    assert np.array_equal(after[:, 32:], before[:, 32:])
    assert np.mean(np.any(after[:, :32] != before[:, :32], axis=-1)) > 0.9
    without = ours(XINFERENCE_INPAINTING, served.url).replace('"mask_image=', '"other=')
    assert json.loads(await shell(without, folder))["detail"] == "mask_image: is required"


@pytest.mark.parametrize("kwargs", ['{"seed": 6, "steps": 1}', {"seed": 6, "steps": 1}])
async def test_kwargs_on_every_route(
    served: ServerProcess, session: aiohttp.ClientSession, kwargs: Any
) -> None:
    """`kwargs` counts in JSON too, as text or object; a field beside it wins, and a URL is the default."""
    image = data_url(png(noise(64, 64)))
    for route in ("generations", "edits", "variations"):
        body = {"prompt": "a cat", "size": "64x64", "steps": 2, "kwargs": kwargs}
        body |= {} if route == "generations" else {"image": image}
        async with session.post(f"{served.url}/v1/images/{route}", json=body) as answer:
            made = await answer.json()
        (item,) = made["data"]
        assert (item["seed"], item["steps"], bool(item["url"]), item["b64_json"]) == (6, 2, True, None)


@pytest.mark.parametrize("kwargs", ["{", "[]", "1", '"x"'])
async def test_bad_kwargs(served: ServerProcess, session: aiohttp.ClientSession, kwargs: str) -> None:
    """`kwargs` that is no object is refused by its name."""
    async with session.post(served.url + GENERATIONS, json={**SMALL, "kwargs": kwargs}) as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "kwargs")


async def test_xinference_terminates(
    serve: Callable[..., ServerProcess], model_dir: Path, session: aiohttp.ClientSession
) -> None:
    """Its client frees a model's memory with DELETE; the files stay, and the next request loads them."""
    server, before = serve("--grace", "1"), sorted(model_dir.rglob("*"))
    server.wait_until_ready()
    client = RESTfulClient(server.url)
    await asyncio.to_thread(client.terminate_model, "tiny-random")

    async def unloaded() -> bool:
        async with session.get(f"{server.url}/health") as answer:
            return bool((await answer.json())["models"] == [])

    await eventually("the model is unloaded", unloaded)
    assert sorted(model_dir.rglob("*")) == before
    with pytest.raises(RuntimeError, match="no-such"):
        await asyncio.to_thread(client.terminate_model, "no-such")
    async with session.post(server.url + GENERATIONS, json=SMALL) as answer:
        assert answer.status == 200, await answer.text()


async def test_progress_and_abort_by_the_clients_request_id(running: RunningApp) -> None:
    """A `request_id` in `kwargs` or in the body finds the job: its progress, and a way to abort it."""
    async with running(engine=SlowEngine) as app:
        kwargs = json.dumps({"request_id": "mine-1", "num_inference_steps": 4})
        first = asyncio.create_task(app.post(GENERATIONS, prompt="a cat", size="64x64", kwargs=kwargs))

        async def progress() -> float | None:
            status, said = await app.get("/v1/requests/mine-1/progress")
            return said["progress"] if status == 200 and said["progress"] > 0 else None

        assert 0 < await eventually("there is progress", progress) < 1
        assert (await first)[0] == 200
        assert await app.get("/v1/requests/mine-1/progress") == (200, {"progress": 1.0})

        second = asyncio.create_task(app.post(GENERATIONS, **SMALL, request_id="mine-2"))
        await job_in_state(app, "running")
        abort = "/v1/models/tiny-random/requests/{}/abort"
        assert await app.post(abort.format("other")) == (200, {"msg": "NOT_FOUND"})
        assert await app.post(abort.format("mine-1")) == (200, {"msg": "NO_OP"})
        assert await app.post(abort.format("mine-2"), block_duration=30) == (200, {"msg": "DONE"})
        assert (await second)[1]["error"]["code"] == "cancelled"
        status, said = await app.post(abort.format("mine-2").replace("tiny-random", "no-such"))
        assert (status, said["error"]["code"]) == (404, "model_not_found")
        status, said = await app.get("/v1/requests/other/progress")
        assert (status, said["error"]["param"]) == (400, "request_id")


async def test_request_ids_are_forgotten_with_their_jobs(running: RunningApp) -> None:
    """The server keeps no name longer than the job that bears it."""
    async with running(engine=QuickEngine, job_ttl=0.01) as app:
        for name in ("a", "b"):
            await app.post(GENERATIONS, **SMALL, request_id=name)
            await asyncio.sleep(0.02)
            app.scheduler.sweep()
            status, _ = await app.get(f"/v1/requests/{name}/progress")
            assert status == 400
        await app.post(GENERATIONS, **SMALL, request_id="c")
        names = app.app[REQUEST_IDS]
        assert list(names) == [("everybody", "c")]
