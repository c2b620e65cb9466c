"""LoRAs of every kind on the real engine: applied, told of, or refused while it stays up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from gguf import GGUFReader, dequantize

from gguf_imagegen.vocabulary.engine import Generate, Lora
from tests.api.client import GENERATIONS, SMALL, picture
from tests.conftest import RunningApp, ServerProcess
from tests.fake_engines import SeeingEngine
from tests.modelfiles.test_lora_card import lora
from tests.weights import Array, product, write_safetensors


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


PROJ = "double_blocks.0.img_attn.proj"
FLAT = f"lora_unet_{PROJ.replace('.', '_')}"
GATE = "lora_unet_double_blocks_0_img_mlp_gate_proj"
ODD = ("_underscore", "[style] 日本語 test", "add-detail-xl (1)", "MJ52_v2.0", "a:b", "é" * 90, "people/anna")
KOHYA = product(FLAT, 128, 128, ends="lora_up lora_down")
LOHA = {f"{FLAT}.hada_w{n}_{half}": ones(*shape)
        for n in "12" for half, shape in (("a", (128, 4)), ("b", (4, 128)))}  # fmt: skip

FITTING: dict[str, dict[str, Array]] = {
    "kohya": KOHYA,
    "comfy": product(f"diffusion_model.{PROJ}", 128, 128),
    "peft": product(f"diffusion_model.{PROJ}", 128, 128, ends="lora_B.default lora_A.default"),
    "old-diffusers": product(f"diffusion_model.{PROJ}", 128, 128, ends="lora.up lora.down"),
    "diffusers": product("transformer.transformer_blocks.0.attn.to_out.0", 128, 128),
    "lokr": {f"{FLAT}.lokr_w1": ones(8, 8), f"{FLAT}.lokr_w2": ones(16, 16)},
    "bias": {f"diffusion_model.{PROJ}.diff_b": ones(128)},
}  # fmt: skip
RENAMED: dict[str, tuple[dict[str, Array], str]] = {
    "wrapped": (product(f"base_model.model.{PROJ}", 128, 128), "comfy"),
    "wrapped-twice": (product(f"base_model.model.base_model.model.{PROJ}", 128, 128), "comfy"),
    "wrapped-comfy": (product(f"base_model.model.diffusion_model.{PROJ}", 128, 128), "comfy"),
    "wrapped-diffusers": (product("base_model.model.transformer_blocks.0.attn.to_out.0", 128, 128), "comfy"),
    "unprefixed": (product(PROJ, 128, 128), "comfy"),
    "adapter": (product(f"base_model.model.{PROJ}", 128, 128, ends="lora_B.mine lora_A.mine"), "comfy"),
    "flat-transformer": (product("lora_transformer_transformer_blocks_0_attn_to_out_0", 128, 128,
                                 ends="lora_up lora_down"), "comfy"),
    "lycoris": ({f"lycoris_{PROJ.replace('.', '_')}.lokr_w1": ones(8, 8),
                 f"lycoris_{PROJ.replace('.', '_')}.lokr_w2": ones(16, 16)}, "lokr"),
}  # fmt: skip
"""Names that the engine does not know, and the file above that is the same in names that it does."""
PARTIAL: dict[str, dict[str, Array]] = {
    "gated": {**KOHYA, **product(GATE, 512, 128, ends="lora_up lora_down")},
    "dora": {**KOHYA, f"{FLAT}.dora_scale": ones(128, 1)},
}
UNFIT: dict[str, tuple[dict[str, Array], str]] = {
    "larger": (product(FLAT, 3072, 3072, ends="lora_up lora_down"), "made for another model"),
    "sd15": (product("lora_te_text_model_encoder_layers_0_mlp_fc1", 768, 768), "0 of 2 tensors fit tiny"),
    "wrapped-sd15": (product("base_model.model.text_model.encoder.layers.0.mlp.fc1", 9, 9), "0 of 2 tensors"),
    "lycoris-diff": ({f"lycoris_{PROJ.replace('.', '_')}.diff": ones(128, 128)}, "unquantised weights only"),
    "bad-rank": (product(FLAT, 128, 128, 8) | {f"{FLAT}.lora_A.weight": ones(4, 128)}, "damaged: the ranks"),
    "q-only": (product("transformer.transformer_blocks.0.attn.to_q", 128, 128), "128 of the 384 rows"),
    "split-lokr": ({f"{FLAT}.lokr_w1": ones(8, 8), f"{FLAT}.lokr_w2_a": ones(16, 4),
                    f"{FLAT}.lokr_w2_b": ones(4, 16)}, "split matrices"),
    "loha": (LOHA, "unquantised weights only"),
    "integers": ({name: tensor.astype(np.int32) for name, tensor in KOHYA.items()}, "cannot apply"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loras")
    others = {key: file for key, (file, _) in {**RENAMED, **UNFIT}.items()}
    for name, tensors in {**FITTING, **PARTIAL, **others}.items():
        write_safetensors(folder / f"{name}.safetensors", tensors)
    (folder / "people").mkdir()
    for name in ODD:
        write_safetensors(folder / f"{name}.safetensors", KOHYA)
    write_safetensors(folder / "UPPER.SAFETENSORS", KOHYA)
    write_safetensors(folder / "short.sft", KOHYA)
    lora(folder / "said.safetensors", {"ss_sd_model_name": "tiny", "modelspec.trigger_phrase": "TOK"})
    return folder


@pytest.fixture(scope="module")
def equipped(model_dir: Path, folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(model_dir, "--grace", "1", "--lora-dir", str(folder))
    process.wait_until_ready()
    yield process
    process.stop()


class Client:
    def __init__(self, server: ServerProcess, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._session = session

    async def post(self, path: str = GENERATIONS, **fields: Any) -> tuple[int, Any]:
        body = {**SMALL, "seed": 3, "response_format": "b64_json", **fields}
        async with self._session.post(self.server.url + path, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str) -> Any:
        async with self._session.get(self.server.url + path) as answer:
            return await answer.json()

    async def made(self, **fields: Any) -> tuple[bytes, list[str]]:
        """Pixels and warnings."""
        status, body = await self.post(**fields)
        assert status == 200, body
        return picture(body["data"][0]["b64_json"]).tobytes(), body["warnings"]


@pytest.fixture
def client(equipped: ServerProcess, session: aiohttp.ClientSession) -> Client:
    return Client(equipped, session)


@pytest.mark.parametrize("name", FITTING)
async def test_what_fits_is_applied(client: Client, name: str) -> None:
    """In each naming that the engine knows; the next picture is free of it, and of warnings."""
    plain = await client.made()
    changed, warnings = await client.made(lora=[{"name": name}])
    assert changed != plain[0]
    assert warnings == []
    assert await client.made() == plain == (plain[0], [])


async def test_names_that_the_engine_does_not_know_change_nothing(client: Client) -> None:
    """PEFT's and LyCORIS's: to the byte the picture of the same LoRA in names that it does know."""
    expected = {name: await client.made(lora=[{"name": name}]) for name in ("comfy", "lokr")}
    assert expected["comfy"] != expected["lokr"]
    for name, (_, same) in RENAMED.items():
        assert await client.made(lora=[{"name": name}]) == expected[same], name
    both = [{"name": "wrapped", "scale": 0.5}, {"name": "lycoris", "scale": 0.5}]
    known = [{"name": "comfy", "scale": 0.5}, {"name": "lokr", "scale": 0.5}]
    assert await client.made(lora=both) == await client.made(lora=known)


@pytest.mark.parametrize(("name", "share"), [("gated", "2 of 4"), ("dora", "2 of 3")])
async def test_what_fits_in_part_is_applied_and_told(client: Client, name: str, share: str) -> None:
    """With the numbers, and one of the tensors without effect; the engine's own words add nothing."""
    changed, warnings = await client.made(lora=[{"name": name}])
    assert changed == (await client.made(lora=[{"name": "kohya"}]))[0]
    (warning,) = warnings
    assert warning.startswith(
        f"lora: {name}.safetensors: {share} tensors fit tiny-random, the rest has no effect"
    )


@pytest.mark.parametrize("name", UNFIT)
async def test_what_the_engine_cannot_apply_never_reaches_it(client: Client, name: str) -> None:
    """A refusal in words; the engine is the same process afterwards."""
    before = client.server.worker()
    status, body = await client.post(lora=[{"name": name}])
    assert (status, body["error"]["param"]) == (400, "lora")
    assert body["error"]["message"].startswith(f"lora: {name}.safetensors ")
    assert UNFIT[name][1] in body["error"]["message"]
    assert before is not None
    assert client.server.worker() == before
    assert (await client.post())[0] == 200


async def test_every_name_of_the_lists_can_be_used(client: Client) -> None:
    """By the field, and by its file's name; the engine reads each of these files."""
    listed = {item["name"] for item in await client.get("/sdapi/v1/loras")}
    told = {item["name"] for item in (await client.get("/sdcpp/v1/capabilities"))["loras"]}
    assert listed == told >= {*ODD, "UPPER", "short"}
    expected, _ = await client.made(lora=[{"name": "kohya"}])
    for name in (*ODD, "UPPER", "UPPER.SAFETENSORS", "short", "short.sft", "_underscore.safetensors"):
        assert await client.made(lora=[{"name": name}]) == (expected, []), name
    fields = {"prompt": "a cat<lora:a:b:1>", "width": 64, "height": 64, "steps": 2}
    status, body = await client.post("/sdapi/v1/txt2img", **fields)
    assert status == 200, body
    assert picture(body["images"][0]).tobytes() == expected


async def test_a_tag_means_what_the_field_means(running: RunningApp, folder: Path) -> None:
    """Each name in each of AUTOMATIC1111's tags: the engine is asked for the same file and weight."""
    seen: list[object] = []
    async with running(engine=lambda: SeeingEngine(seen), lora_dir=folder) as app:

        async def asked(path: str, **fields: Any) -> tuple[Lora, ...]:
            status, body = await app.post(path, **fields)
            assert status == 200, body
            assert isinstance(seen[-1], Generate)
            return seen[-1].loras

        for name in (*ODD, "UPPER", "short", "anna"):
            expected = await asked(GENERATIONS, **SMALL, lora=[{"name": name}])
            assert len(expected) == 1
            for tag in (f"<lora:{name}>", f"<lora:{name}:1>", f"<lyco:{name}:0.5:1>"):
                fields = {"prompt": f"a cat{tag}", "width": 64, "height": 64, "steps": 2}
                assert await asked("/sdapi/v1/txt2img", **fields) == expected, tag


async def test_what_loras_say_of_themselves(client: Client) -> None:
    """From the metadata of the file, beside its name; empty where it has none."""
    listed = {item.pop("name"): item for item in (await client.get("/v1/addons"))["loras"]}
    assert listed["said"] == {"base_model": "tiny", "trigger_words": ["TOK"]}
    assert listed["people/anna"] == {"base_model": "", "trigger_words": []}


async def test_a_refused_lora_in_each_dialects_shape(client: Client) -> None:
    """A tag in a prompt, and a file of sd.cpp's own server."""
    fields = {"prompt": "a cat<lora:larger:1>", "width": 64, "height": 64, "steps": 2}
    status, body = await client.post("/sdapi/v1/txt2img", **fields)
    assert status == 400
    assert "made for another model" in str(body["detail"])
    fields = {"prompt": "a cat", "width": 64, "height": 64, "lora": [{"path": "larger.safetensors"}]}
    status, body = await client.post("/sdcpp/v1/img_gen", **fields)
    assert status == 400
    assert "made for another model" in str(body)


async def test_an_unquantised_model_is_left_as_it_was(
    running: RunningApp, tmp_path: Path, folder: Path
) -> None:
    """Whole matrices can be added to its weights; nothing of a LoRA stays behind, not in a warning either."""
    model = await _unquantised(tmp_path)
    async with running(models_dir=tmp_path, model=str(model), lora_dir=folder) as app:

        async def made(**fields: Any) -> tuple[bytes, list[str]]:
            status, body = await app.post(GENERATIONS, **{**SMALL, "seed": 3}, **fields)
            assert status == 200, body
            return picture(body["data"][0]["b64_json"]).tobytes(), body["warnings"]

        plain = await made()
        for name in ("kohya", "gated", "loha", "lokr"):
            assert (await made(lora=[{"name": name}]))[0] != plain[0]
        assert await made() == plain == (plain[0], [])


async def _unquantised(folder: Path) -> Path:
    """The tiny model with all of its matrices in F16, and its decoder beside it."""
    from gguf_imagegen.commands.testmodel import write_test_model

    paths = write_test_model(folder)
    tensors = {}
    for tensor in GGUFReader(paths["model"]).tensors:
        shape = tuple(int(side) for side in tensor.shape)[::-1]
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)
        tensors[tensor.name] = weight.astype(np.float16) if weight.ndim == 2 else weight
    model = write_safetensors(folder / "plain.safetensors", tensors)
    paths["taesd"].rename(folder / "plain-tae.gguf")
    paths["model"].unlink()
    return model
