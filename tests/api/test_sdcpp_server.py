"""sd.cpp's native API over HTTP: what its own clients do, answered in its own shapes, by the real engine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from gguf_imagegen.pictures import infotext
from tests.api.client import GENERATIONS, data_url, eventually, noise, picture, png
from tests.conftest import App, RunningApp, ServerProcess
from tests.fake_engines import FailsGeneration, NeverAnswers, QuickEngine

API = "/sdcpp/v1"
SMALL: dict[str, Any] = {"prompt": "a cat", "width": 64, "height": 64, "sample_params": {"sample_steps": 2}}
LONG = {"batch_count": 10, "width": 128, "height": 128, "sample_params": {"sample_steps": 150}}
JOB_KEYS = {
    "id", "kind", "status", "created", "started", "completed", "queue_position", "result", "error",
}  # fmt: skip
"""Of make_async_job_json in sd.cpp's async_jobs.cpp."""


class Client:
    """Speaks the API to one server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url + API
        self.session = session

    async def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as answer:
            assert answer.content_type == "application/json"
            return answer.status, await answer.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as answer:
            return answer.status, await answer.json()

    async def submit(self, **fields: Any) -> Any:
        status, body = await self.post("/img_gen", {**SMALL, **fields})
        assert status == 202, body
        assert body["poll_url"] == f"{API}/jobs/{body['id']}"
        assert (body["kind"], body["status"]) == ("img_gen", "queued")
        return body

    async def job(self, job_id: str) -> Any:
        status, body = await self.get(f"/jobs/{job_id}")
        assert status == 200, body
        assert body.keys() >= JOB_KEYS
        return body

    async def cancel(self, job_id: str) -> Any:
        status, body = await self.post(f"/jobs/{job_id}/cancel")
        assert status == 200, body
        return body

    async def reaches(self, job_id: str, *states: str) -> Any:
        """The job as soon as it is in one of these states."""

        async def look() -> Any:
            job = await self.job(job_id)
            return job if job["status"] in states else None

        return await eventually(f"{job_id} is {states}", look)

    async def made(self, **fields: Any) -> Any:
        """A whole job, from submission to its result."""
        job = await self.reaches((await self.submit(**fields))["id"], "completed", "failed", "cancelled")
        assert job["error"] is None, job["error"]
        return job


@pytest.fixture
def client(server: ServerProcess, session: aiohttp.ClientSession) -> Client:
    return Client(server.url, session)


def client_of(app: App) -> Client:
    return Client(app.url, app.session)


def pictures_of(job: Any) -> list[Any]:
    return [picture(image["b64_json"]) for image in job["result"]["images"]]


# -- capabilities -------------------------------------------------------------------------------------


async def test_capabilities_say_what_sdcpp_says(client: Client, model_dir: Path) -> None:
    """All keys of the original with values of this server, mirrors equal, and no path anywhere."""
    status, body = await client.get("/capabilities")
    assert status == 200
    assert body.keys() >= {
        "model", "current_mode", "supported_modes", "defaults", "output_formats", "features",
        "defaults_by_mode", "output_formats_by_mode", "features_by_mode", "samplers", "schedulers", "loras",
        "upscalers", "limits",
    }  # fmt: skip
    assert (body["current_mode"], body["supported_modes"]) == ("img_gen", ["img_gen"])
    for mirror in ("defaults", "output_formats", "features"):
        assert body[f"{mirror}_by_mode"] == {"img_gen": body[mirror]}
    assert body["model"].items() >= {"name": "tiny-random.gguf", "stem": "tiny-random"}.items()
    assert body["model"]["path"] == "tiny-random.gguf"
    assert str(model_dir) not in json.dumps(body)
    assert body["limits"].items() >= {"min_width": 64, "max_batch_count": 10, "max_queue_size": 16}.items()
    assert {"euler_a", "dpm++2m"} <= set(body["samplers"])
    assert "karras" in body["schedulers"]
    assert "ays" not in body["schedulers"]
    assert {"name": "Latent (bicubic)"} in body["upscalers"]
    assert body["features"]["cancel_generating"] is True
    assert body["features"]["control_image"] is False


async def test_capabilities_list_the_files_requests_may_name(running: RunningApp, tmp_path: Path) -> None:
    """LoRAs and upscalers by their bare names."""
    (tmp_path / "style.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    async with running(engine=QuickEngine, lora_dir=tmp_path, upscaler_dir=tmp_path) as app:
        _, body = await client_of(app).get("/capabilities")
    assert body["loras"] == [{"name": "style", "path": "style"}]
    assert body["upscalers"][-1] == {"name": "style"}
    assert body["features"]["lora"] is True
    assert str(tmp_path) not in json.dumps(body)


async def test_capabilities_are_within_the_servers_bounds(running: RunningApp) -> None:
    """What an administrator bounds is told, and the defaults keep to it."""
    async with running(engine=QuickEngine, max_side=256, max_steps=10) as app:
        _, body = await client_of(app).get("/capabilities")
        assert (body["limits"]["max_width"], body["limits"]["max_height"]) == (256, 256)
        assert body["defaults"]["sample_params"]["sample_steps"] == 10
        status, _ = await client_of(app).post("/img_gen", {**body["defaults"], "prompt": "a cat"})
    assert status == 202


async def test_defaults_can_be_sent_back(client: Client) -> None:
    """A client that fills its form from the defaults gets what a silent request gets, and no warning."""
    _, body = await client.get("/capabilities")
    full = await client.made(**{**body["defaults"], "prompt": "a cat", "seed": 4})
    status, answer = await client.post("/img_gen", {"prompt": "a cat", "seed": 4})
    assert status == 202
    silent = await client.reaches(answer["id"], "completed")
    assert full["warnings"] == []
    assert full["result"] == silent["result"]
    assert pictures_of(full)[0].size == (body["defaults"]["width"], body["defaults"]["height"])


# -- jobs ---------------------------------------------------------------------------------------------


async def test_submit_poll_picture(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """The whole way of a client that leaves after submitting and comes back for the result."""
    async with aiohttp.ClientSession() as first:
        submitted = await Client(server.url, first).submit(seed=7, negative_prompt="fog")
    assert submitted.keys() >= {"id", "kind", "status", "created", "poll_url"}
    async with session.get(server.url + submitted["poll_url"]) as answer:
        assert answer.status == 200
    job = await Client(server.url, session).reaches(submitted["id"], "completed")
    assert (job["kind"], job["queue_position"], job["error"]) == ("img_gen", 0, None)
    assert submitted["created"] == job["created"] <= job["started"] + 1 <= job["completed"] + 1
    assert (job["progress"], job["step"], job["steps"], job["eta"]) == (1.0, 2, 2, 0.0)
    (image,) = job["result"]["images"]
    assert (job["result"]["output_format"], image["index"], image["seed"]) == ("png", 0, 7)
    made = picture(image["b64_json"])
    assert (made.format, made.size) == ("PNG", (64, 64))
    told = infotext.parse_parameters(infotext.read(made) or "")
    assert told.items() >= {"Prompt": "a cat", "Negative prompt": "fog", "Steps": "2", "Seed": "7"}.items()


async def test_several_images(client: Client) -> None:
    """batch_count pictures in order, each of its own seed, in the format that was asked for."""
    job = await client.made(batch_count=3, seed=5, output_format="webp", output_compression=70)
    images = job["result"]["images"]
    assert [(image["index"], image["seed"]) for image in images] == [(0, 5), (1, 6), (2, 7)]
    assert job["result"]["output_format"] == "webp"
    assert [made.format for made in pictures_of(job)] == ["WEBP"] * 3
    assert len({image["b64_json"] for image in images}) == 3


async def test_sampling_is_as_native_fields_say(client: Client) -> None:
    """Sampler, schedule, steps and guidance of sample_params reach the engine."""
    guidance = {"txt_cfg": 3.5, "slg": {"scale": 0.0}}
    params = {"sample_method": "heun", "scheduler": "karras", "sample_steps": 3, "guidance": guidance}
    (made,) = pictures_of(await client.made(sample_params=params))
    told = infotext.parse_parameters(infotext.read(made) or "")
    assert told.items() >= {"Steps": "3", "Sampler": "heun", "Schedule type": "karras"}.items()
    assert told["CFG scale"] == "3.5"


async def test_only_the_masked_half_is_repainted(client: Client) -> None:
    """init_image and mask_image: white is made anew, black stays as it was to the pixel."""
    before = noise(64, 64)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    mask_64 = base64.b64encode(png(Image.fromarray(mask))).decode()
    job = await client.made(init_image=data_url(png(before)), mask_image=mask_64, strength=0.9)
    old, new = np.asarray(before), np.asarray(pictures_of(job)[0].convert("RGB"))
    assert (old[:, :32] == new[:, :32]).all()
    assert (old[:, 32:] != new[:, 32:]).any()


async def test_hires_makes_a_larger_picture(client: Client) -> None:
    """Enabled it doubles the size, or reaches its targets; disabled it does nothing."""
    (large,) = pictures_of(await client.made(hires={"enabled": True, "steps": 1}))
    (aimed,) = pictures_of(await client.made(hires={"enabled": True, "target_width": 96, "steps": 1}))
    (plain,) = pictures_of(await client.made(hires={"enabled": False, "scale": 2.0}))
    assert (large.size, aimed.size, plain.size) == ((128, 128), (96, 96), (64, 64))


async def test_what_has_no_effect_is_told(client: Client) -> None:
    """Fields that this engine cannot honour are named in the 202 and in the job."""
    submitted = await client.submit(nobody=1, vae_tiling_params={"rel_size_x": 0.5})
    assert submitted["warnings"] == [
        "unknown field 'nobody' was ignored",
        "unknown field 'vae_tiling_params.rel_size_x' was ignored",
    ]
    assert (await client.reaches(submitted["id"], "completed"))["warnings"] == submitted["warnings"]


async def test_jobs_of_other_dialects_can_be_read(running: RunningApp) -> None:
    """There is one queue: a job of OpenAI's route has the same address here."""
    async with running(engine=QuickEngine) as app:
        _, made = await app.post(GENERATIONS, prompt="a cat", size="64x64")
        job = await client_of(app).job(made["id"])
    assert job["result"]["images"][0]["b64_json"] == made["data"][0]["b64_json"]


async def test_a_repeated_submission_is_one_job(running: RunningApp) -> None:
    """Equal requests are jobs of their own, but with one Idempotency-Key they are the same job."""
    async with running(engine=QuickEngine) as app:
        client, ids = client_of(app), []
        for key in ("once", "once", "twice"):
            headers = {"Idempotency-Key": key}
            async with app.session.post(f"{client.url}/img_gen", json=SMALL, headers=headers) as answer:
                assert answer.status == 202
                ids.append((await answer.json())["id"])
        ids += [(await client.submit())["id"], (await client.submit())["id"]]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4


async def test_failed_job_says_why(running: RunningApp) -> None:
    """A failure is a state of the job, with code and message and without a result."""
    async with running(engine=FailsGeneration) as app:
        client = client_of(app)
        job = await client.reaches((await client.submit())["id"], "failed")
    assert (job["result"], job["error"]["code"]) == (None, "generation_failed")
    assert "out of paint" in job["error"]["message"]
    assert job["progress"] < 1


# -- cancelling ---------------------------------------------------------------------------------------


async def test_cancel_queued_and_running(running: RunningApp) -> None:
    """Both end at once in the original's shape, and the next job finds a working engine."""
    async with running() as app:
        client = client_of(app)
        first = (await client.submit(**LONG))["id"]
        second = (await client.submit())["id"]
        third = (await client.submit(seed=1))["id"]
        running_job = await client.reaches(first, "generating")
        assert running_job["started"] is not None
        assert (running_job["completed"], running_job["queue_position"]) == (None, 0)
        assert (await client.job(second))["queue_position"] == 1
        assert (await client.job(third))["queue_position"] == 2
        queued = await client.cancel(second)
        assert (queued["status"], queued["started"], queued["queue_position"]) == ("cancelled", None, 0)
        assert queued["error"] == {"code": "cancelled", "message": "job cancelled by client"}
        assert queued["result"] is None
        assert (await client.job(third))["queue_position"] == 1
        ended = await client.cancel(first)
        assert (ended["status"], ended["error"]) == ("cancelled", queued["error"])
        assert ended["progress"] < 1
        done = await client.reaches(third, "completed")
        assert await client.cancel(third) == done
        assert (await client.cancel(first))["status"] == "cancelled"


async def test_progress_of_a_running_job(running: RunningApp) -> None:
    """While it works a job tells its step, how far it is from 0 to 1, and how long it will take."""
    async with running() as app:
        client = client_of(app)
        job_id = (await client.submit(**LONG))["id"]

        async def look() -> Any:
            job = await client.job(job_id)
            return job if job["eta"] and job["step"] > 3 else None

        job = await eventually("the job has an ETA", look)
        assert 0 < job["progress"] < 1
        assert job["steps"] == 150
        await client.cancel(job_id)


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"width": "wide"}, "width", "width: must be a whole number"),
        ({"sample_params": {"sample_steps": 9999}}, "sample_params.sample_steps", "9999 steps are too many"),
        ({"sample_params": {"sample_method": "eulr"}}, "sample_params.sample_method", "did you mean 'euler"),
        ({"sample_params": {"guidance": {"txt_cfg": -1}}}, "sample_params.guidance.txt_cfg", "greater than"),
        ({"batch_count": 99}, "batch_count", "batch_count: at most 10"),
        ({"init_image": "no picture"}, "init_image", "init_image: Invalid image"),
        ({"mask_image": "AAAA"}, "mask_image", "mask_image: a mask needs an image"),
        ({"lora": [{"path": "../../etc/passwd"}]}, "lora", "no LoRA"),
        ({"prompt": ""}, "prompt", "prompt: is required"),
        ({"model": "nothing"}, "model", "there is no model"),
    ],
)
async def test_refusals_name_the_native_field(
    client: Client, fields: dict[str, Any], param: str, words: str
) -> None:
    """`error` is text as sd.cpp's clients expect; our error object's members stand beside it."""
    status, body = await client.post("/img_gen", {**SMALL, **fields})
    assert status in (400, 404)
    assert isinstance(body["error"], str)
    assert body["error"] == body["message"] == body["detail"]
    assert body["param"] == param
    assert words in body["error"]
    assert body["code"]
    assert body["type"] == "invalid_request_error"


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"prompt=cat"])
async def test_bodies_that_are_no_json_object(client: Client, data: bytes) -> None:
    async with client.session.post(f"{client.url}/img_gen", data=data) as answer:
        assert answer.status == 400
        assert "body" in (await answer.json())["error"]


async def test_video_is_refused(client: Client) -> None:
    """sd.cpp's words for a model that makes no video."""
    status, body = await client.post("/vid_gen", {"prompt": "a cat walking"})
    assert (status, body["code"]) == (400, "unsupported_operation")
    assert body["error"].startswith("loaded model does not support vid_gen")


async def test_full_queue(running: RunningApp) -> None:
    """429 with sd.cpp's words, and our advice when to come back."""
    async with running(engine=NeverAnswers, max_queue=1) as app:
        client = client_of(app)
        await client.reaches((await client.submit())["id"], "generating")
        await client.submit()
        async with app.session.post(f"{client.url}/img_gen", json=SMALL) as answer:
            assert answer.status == 429
            assert int(answer.headers["Retry-After"]) >= 1
            body = await answer.json()
        assert (body["error"], body["code"]) == ("job queue is full", "queue_full")


async def test_unknown_and_expired_jobs(running: RunningApp) -> None:
    """404 for an id that never was, 410 for one whose time is over."""
    async with running(engine=QuickEngine, job_ttl=0.2) as app:
        client = client_of(app)
        assert (await client.get("/jobs/job_nothing"))[0] == 404
        status, body = await client.post("/jobs/job_nothing/cancel")
        assert (status, body["error"], body["code"]) == (404, "job not found", "job_not_found")
        job_id = (await client.made())["id"]

        async def expired() -> tuple[int, Any] | None:
            found = await client.get(f"/jobs/{job_id}")
            return found if found[0] != 200 else None

        before_sweep = await eventually("the job expires", expired)
        app.scheduler.sweep()
        for status, body in (
            before_sweep,
            await client.get(f"/jobs/{job_id}"),
            await client.post(f"/jobs/{job_id}/cancel"),
        ):
            assert (status, body["error"], body["code"]) == (410, "job expired", "job_expired")


# -- inside a prompt of another dialect ---------------------------------------------------------------


def with_extra(native: Any) -> str:
    text = native if isinstance(native, str) else json.dumps(native)
    return f"a cat <sd_cpp_extra_args>{text}</sd_cpp_extra_args>"


async def test_extra_args_in_an_openai_prompt(server: ServerProcess, session: aiohttp.ClientSession) -> None:
    """They win over the fields around them, and the picture's prompt is without them."""
    native = {
        "sample_params": {"sample_steps": 3, "sample_method": "heun"},
        "seed": 8,
        "cache_mode": "ucache",
    }
    fields = {"prompt": with_extra(native), "size": "64x64", "steps": 2, "response_format": "b64_json"}
    async with session.post(server.url + GENERATIONS, json=fields) as answer:
        assert answer.status == 200
        body = await answer.json()
    (item,) = body["data"]
    assert (item["steps"], item["sampler"], item["seed"], item["width"]) == (3, "heun", 8, 64)
    (warning,) = body["warnings"]
    assert "cannot have 'ucache'" in warning
    told = infotext.parse_parameters(infotext.read(picture(item["b64_json"])) or "")
    assert told["Prompt"] == "a cat"


@pytest.mark.parametrize("inside", ["{", "[]", '{"width": "wide"}'])
async def test_malformed_extra_args(
    server: ServerProcess, session: aiohttp.ClientSession, inside: str
) -> None:
    """A clear 400 on the prompt, in the shape of the dialect that carried it."""
    async with session.post(server.url + GENERATIONS, json={"prompt": with_extra(inside)}) as answer:
        assert answer.status == 400
        error = (await answer.json())["error"]
    assert (error["param"], error["code"]) == ("prompt", "invalid_request")
    assert "<sd_cpp_extra_args>" in error["message"]


async def test_native_prompts_are_left_alone(client: Client) -> None:
    """As in the original, the block means nothing in the API whose own schema it is."""
    prompt = with_extra({"seed": 8})
    job = await client.made(prompt=prompt, seed=1)
    assert job["result"]["images"][0]["seed"] == 1
    told = infotext.parse_parameters(infotext.read(pictures_of(job)[0]) or "")
    assert told["Prompt"] == prompt
