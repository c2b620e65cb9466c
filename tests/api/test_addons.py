"""Upscalers, LoRAs and edits by reference, on small real files and the real engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from tests.api.client import EDITS, GENERATIONS, SMALL, data_url, noise, picture, png, post_stream
from tests.conftest import RunningApp, ServerProcess
from tests.weights import write_lora, write_upscaler

VARIATIONS = "/v1/images/variations"
UPSCALE = "/v1/images/upscale"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """LoRAs `bright`, `other` and `misfit`, and upscalers `double` and `fourfold`."""
    loras, upscalers = tmp_path_factory.mktemp("my loras"), tmp_path_factory.mktemp("upscalers")
    write_lora(loras / "bright.gguf")
    write_lora(loras / "other.gguf", seed=1)
    write_lora(loras / "misfit.gguf", target="input_blocks.4.1.proj_in")
    write_upscaler(upscalers / "double.gguf", 2)
    write_upscaler(upscalers / "fourfold.gguf", 4)
    (upscalers / "wrong.safetensors").write_bytes(b"no header")
    return loras, upscalers


@pytest.fixture(scope="module")
def equipped(model_dir: Path, folders: tuple[Path, Path]) -> Iterator[ServerProcess]:
    """A server with these, and the tiny model twice: once as it is, once editing by reference."""
    catalog = model_dir / "references.yaml"
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    entry = {
        "family": "ovis-image", "files": files, "edits": "reference", "limits": {"references": 3},
        "capabilities": ["text-to-image", "reference-edit"], "defaults": {"size": "128x128", "steps": 2},
    }  # fmt: skip
    catalog.write_text(json.dumps({"version": 1, "models": {"by-reference": entry}}))
    loras, upscalers = folders
    flags = ["--lora-dir", str(loras), "--upscaler-dir", str(upscalers), "--catalog", str(catalog)]
    process = ServerProcess(model_dir, "--grace", "1", *flags)
    process.wait_until_ready()
    yield process
    process.stop()


class Client:
    """Posts to the server, and gives what came back."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def post(self, path: str = GENERATIONS, status: int = 200, **fields: Any) -> Any:
        body = {**SMALL, "seed": 3, "response_format": "b64_json", **fields}
        async with self.session.post(self.url + path, json=body) as answer:
            content = await answer.json()
            assert answer.status == status, content
            return content

    async def picture(self, path: str = GENERATIONS, **fields: Any) -> Image.Image:
        (item,) = (await self.post(path, **fields))["data"]
        return picture(item["b64_json"])

    async def refusal(self, path: str = GENERATIONS, **fields: Any) -> str:
        content = await self.post(path, 400, **fields)
        return str(content["error"]["message"])


@pytest.fixture
def client(equipped: ServerProcess, session: aiohttp.ClientSession) -> Client:
    return Client(equipped.url, session)


# -- upscaling ----------------------------------------------------------------------------------------


def off_by(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two pictures, in steps of 256."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


@pytest.mark.parametrize(
    ("factor", "upscaler"), [(4, "fourfold"), (2, "double"), (3, "fourfold.gguf"), (4, None)]
)
async def test_a_picture_is_made_larger(client: Client, factor: int, upscaler: str | None) -> None:
    """The upscaler's own factor, or another by resizing what it made; the picture stays what it was."""
    small = await client.picture()
    large = await client.picture(upscale=factor, upscaler=upscaler)
    assert large.size == (factor * small.width, factor * small.height)
    assert off_by(large.resize(small.size, Image.Resampling.BOX), small) < 8
    assert f"Postprocess upscale by: {factor}" in large.info["parameters"]


async def test_size_and_events_of_an_upscaled_picture(client: Client) -> None:
    """The answer's size is the delivered one, each picture is enlarged, and the stream shows the phase."""
    body = await client.post(upscale=2, n=2, upscaler="double")
    assert (body["size"], [item["width"] for item in body["data"]]) == ("128x128", [128, 128])
    stream = await post_stream(
        client.session, client.url + GENERATIONS, upscale=2, stream_options={"preview": True}
    )
    phases = [item["phase"] for item in stream.items]
    assert "upscaling" in phases
    assert stream.items[-1]["progress"] == 100


async def test_an_edit_is_composited_before_it_is_enlarged(client: Client) -> None:
    """What the mask keeps is kept in the larger picture, too."""
    before, mask = noise(64, 64), Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    fields = {"image": data_url(png(before)), "mask": data_url(png(mask)), "size": "64x64"}
    after = await client.picture(EDITS, upscale=2, upscaler="double", **fields)
    kept = (64, 0, 128, 128)
    assert off_by(after.crop(kept), before.resize((128, 128), Image.Resampling.NEAREST).crop(kept)) < 3
    assert off_by(after, before.resize((128, 128), Image.Resampling.NEAREST)) > 3


async def test_finished_pictures_and_uploads_are_upscaled(client: Client) -> None:
    """On a route of its own: by name or as an upload the same pixels; the answer's model is the upscaler."""
    body = await client.post(response_format=None)
    (item,) = body["data"]
    name = item["url"].rpartition("/")[2]
    stored = await client.post(UPSCALE, image=name, model="double", upscale=2)
    sent = await client.picture(UPSCALE, image=item["b64_json"], upscaler="double.gguf", upscale=2)
    assert (stored["model"], stored["size"]) == ("double", "128x128")
    assert picture(stored["data"][0]["b64_json"]).tobytes() == sent.tobytes()
    assert (await client.picture(UPSCALE, image=name)).size == (256, 256)
    assert "expired" in (await client.post(UPSCALE, 404, image=f"0{name[1:]}"))["error"]["message"]
    assert "image" in await client.refusal(UPSCALE)
    assert "no upscaler 'triple'" in await client.refusal(UPSCALE, image=name, model="triple")


async def test_an_upscale_in_tiles_of_another_size(client: Client) -> None:
    """A picture smaller than a tile is enlarged at once, and in tiles of 32 pixels step by step."""
    fields: dict[str, Any] = {"image": data_url(png(noise(96, 96))), "model": "double", "upscale": 2}
    whole = await post_stream(client.session, client.url + UPSCALE, **fields)
    tiled = await post_stream(client.session, client.url + UPSCALE, **fields, upscale_tile_size=32)
    assert len(tiled.items) > len(whole.items)
    assert "upscale_tile_size" in await client.refusal(UPSCALE, **fields, upscale_tile_size=8)


async def test_an_upscale_is_streamed_or_a_job(client: Client) -> None:
    """As on the other routes for pictures."""
    fields: dict[str, Any] = {"image": data_url(png(noise(64, 64))), "model": "double", "upscale": 2}
    stream = await post_stream(client.session, client.url + UPSCALE, **fields)
    assert [item["phase"] for item in stream.items][-2:] == ["upscaling", "done"]
    wishes = {"Prefer": "respond-async"}
    async with client.session.post(client.url + UPSCALE, json=fields, headers=wishes) as answer:
        job = await answer.json()
        assert (answer.status, job["operation"]) == (202, "upscale")


async def test_without_an_upscaler_it_is_refused(
    server: ServerProcess, session: aiohttp.ClientSession
) -> None:
    """The message says where upscalers belong."""
    assert "--upscaler-dir" in await Client(server.url, session).refusal(upscale=2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"upscaler": "nothing"}, "known: double, fourfold, wrong"),
        ({"upscaler": "fourfould"}, "did you mean 'fourfold'"),
        ({"upscaler": "../loras/bright"}, "no upscaler"),
        ({"upscaler": "wrong"}, "wrong.safetensors"),
        ({"upscale": 9}, "upscale"),
        ({"upscale": 1}, "upscale"),
        ({"hires": {"upscaler": "nothing"}}, "known: double, fourfold, wrong"),
    ],
)
async def test_upscales_that_cannot_be(client: Client, fields: dict[str, Any], words: str) -> None:
    """Wrong names and factors are refused before anything is made."""
    assert words in await client.refusal(**{"upscale": 2, **fields})


async def test_hires_by_an_upscaler(client: Client) -> None:
    """The second pass of a picture may start from what an upscaler made."""
    large = await client.picture(hires={"upscaler": "double", "scale": 2, "steps": 2})
    latent = await client.picture(hires={"upscaler": "Latent (nearest-exact)", "width": 128, "height": 128})
    assert large.size == latent.size == (128, 128)
    assert "Hires upscaler: double" in large.info["parameters"]


# -- LoRAs --------------------------------------------------------------------------------------------


async def test_a_lora_changes_the_picture_by_its_scale(client: Client) -> None:
    """Scale 0 is no LoRA; each file and each scale gives another picture, and the next one is free of it."""
    plain = await client.picture()
    at = {scale: await client.picture(lora=[{"name": "bright", "scale": scale}]) for scale in (0, 0.5, 1)}
    other = await client.picture(lora=[{"id": "other", "weight": 1}])
    assert at[0].tobytes() == plain.tobytes() == (await client.picture()).tobytes()
    assert len({image.tobytes() for image in (plain, at[0.5], at[1], other)}) == 4


async def test_a_lora_of_another_model_is_refused(client: Client) -> None:
    """Its tensors fit nowhere: said before anything is made, without a path."""
    message = await client.refusal(lora=[{"name": "misfit"}])
    assert message.startswith("lora: misfit.gguf was made for another model")
    assert "0 of 2 tensors fit tiny-random" in message
    assert "/" not in message


@pytest.mark.parametrize("name", ["../loras/bright", "/etc/passwd", "bright.gguf/..", "absent", "a/b"])
async def test_loras_are_names_inside_the_folder(client: Client, name: str) -> None:
    """No path reaches another file; the message tells the names that there are."""
    message = await client.refusal(lora=[{"name": name}])
    assert "known: bright, misfit, other" in message
    assert "/tmp" not in message


async def test_lora_tags_are_taken_out_of_prompts(client: Client) -> None:
    """A tag in a prompt loads nothing; a warning names the field that does."""
    tagged = await client.post(prompt="a cat<lora:bright:1>")
    assert tagged["data"][0]["b64_json"] == (await client.post())["data"][0]["b64_json"]
    assert any("'lora'" in warning for warning in tagged["warnings"])


# -- edits by reference -------------------------------------------------------------------------------


def solid(colour: str) -> str:
    return data_url(png(Image.new("RGB", (96, 64), colour)))


async def test_references_steer_the_picture(client: Client) -> None:
    """Every reference counts, in its place; the size has the first one's aspect, rounded down to 32."""
    by = {"model": "by-reference", "size": None}
    pictures = [
        await client.picture(EDITS, image=images, **by)
        for images in (
            [solid("red")],
            [solid("blue")],
            [solid("red"), solid("blue")],
            [solid("blue"), solid("red")],
        )
    ]
    assert len({image.tobytes() for image in pictures}) == 4
    assert {image.size for image in pictures} == {(128, 96)}


async def test_strength_is_no_matter_of_references(client: Client) -> None:
    """An edit by reference starts from noise, whatever strength is sent."""
    by = {"model": "by-reference", "image": solid("red")}
    one = await client.picture(EDITS, strength=0.1, **by)
    assert one.tobytes() == (await client.picture(EDITS, strength=0.9, **by)).tobytes()


async def test_a_mask_bounds_an_edit_by_reference(client: Client) -> None:
    """What the mask keeps has the input's own pixels; the rest does not."""
    before, mask = noise(128, 128), Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    fields = {"model": "by-reference", "image": data_url(png(before)), "mask": data_url(png(mask))}
    after = await client.picture(EDITS, size="128x128", **fields)
    right, left = (64, 0, 128, 128), (0, 0, 64, 128)
    assert after.crop(right).tobytes() == before.crop(right).tobytes()
    assert after.crop(left).tobytes() != before.crop(left).tobytes()


async def test_edits_that_a_model_cannot_do_name_one_that_can(client: Client) -> None:
    """Several images need references, and only so many."""
    message = await client.refusal(EDITS, image=[solid("red"), solid("blue")])
    assert "by-reference can" in message
    message = await client.refusal(EDITS, model="by-reference", image=[solid("red")] * 4)
    assert "cannot do edits of 4 images; pull one that can: flux" in message


async def test_a_models_bound_of_guidance(running: RunningApp, model_dir: Path, tmp_path: Path) -> None:
    """A distilled model is not driven above its own cfg_scale, and the answer says so."""
    files = {"model": "tiny-random.gguf", "taesd": "tiny-random-tae.gguf"}
    entry = {"family": "ovis-image", "files": files, "limits": {"cfg_scale": 1}}
    (tmp_path / "c.yaml").write_text(json.dumps({"version": 1, "models": {"distilled": entry}}))
    async with running(catalog=tmp_path / "c.yaml") as app:
        status, body = await app.post(GENERATIONS, **SMALL, model="distilled", true_cfg_scale=4)
    assert (status, body["data"][0]["cfg_scale"]) == (200, 1)
    assert body["warnings"] == ["cfg_scale: distilled takes at most 1; 4 was lowered to that"]


async def test_two_kinds_of_work_by_turns(client: Client) -> None:
    """Pictures, upscales and references asked for at once all come out right."""
    answers = await asyncio.gather(
        client.picture(),
        client.picture(upscale=2, upscaler="double"),
        client.picture(EDITS, model="by-reference", image=solid("red"), size="64x64"),
    )
    assert [image.size for image in answers] == [(64, 64), (128, 128), (64, 64)]
