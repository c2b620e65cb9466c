"""Variation seeds over HTTP: what is asked for, what is told of it, and an engine that has none."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from msgspec.structs import replace

from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.pictures import infotext
from gguf_imagegen.vocabulary.abilities import Abilities
from tests.api.client import GENERATIONS, SMALL, picture
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

pytestmark = pytest.mark.posix


class Unpatched(SdCpp):
    """As pip builds it."""

    def abilities(self) -> Abilities:
        return replace(super().abilities(), variations=False)


def told(encoded: str) -> dict[str, str]:
    """The settings in a picture."""
    return infotext.parse_parameters(picture(encoded).info["parameters"])


async def generated(app: App, **fields: Any) -> Any:
    status, answer = await app.post(GENERATIONS, **{**SMALL, "seed": 5, **fields})
    assert status == 200, answer
    return answer["data"]


async def test_a_variation_is_told_and_made_again(running: RunningApp) -> None:
    """The seed that was drawn for it makes the same picture, and so do AUTOMATIC1111's fields."""
    async with running() as app:
        (own,) = await generated(app)
        first, second = await generated(app, variation_strength=0.25, n=2)
        other = first["variation_seed"]
        assert (own["variation_seed"], first["seed"], second["seed"]) == (None, 5, 5)
        assert second["variation_seed"] == other + 1
        pairs = {"Seed": "5", "Variation seed": str(other + 1), "Variation seed strength": "0.25"}
        assert told(second["b64_json"]).items() >= pairs.items()
        assert not told(own["b64_json"]).keys() & {"Variation seed", "Variation seed strength"}
        (again,) = await generated(app, variation_seed=other + 1, variation_strength=0.25)
        assert again["b64_json"] == second["b64_json"] != first["b64_json"]
        fields = {"prompt": "a cat", "width": 64, "height": 64, "steps": 2, "seed": 5, "batch_size": 2}
        _, classic = await app.post(
            "/sdapi/v1/txt2img", **fields, subseed=other, subseed_strength=0.25, sampler_name="Euler"
        )
        assert classic["warnings"] == []
        info = json.loads(classic["info"])
        assert (info["subseed"], info["subseed_strength"]) == (other, 0.25)
        assert (info["all_seeds"], info["all_subseeds"]) == ([5, 5], [other, other + 1])
        assert told(classic["images"][1]).items() >= pairs.items()
        drawn = [base64.b64decode(each) for each in classic["images"]]
        assert drawn == [base64.b64decode(each["b64_json"]) for each in (first, second)]


async def test_an_engine_without_it(running: RunningApp) -> None:
    """Refuses it in words, in any dialect, and says so of its models; what asks for none goes on."""
    async with running(backend=Unpatched) as app:
        _, models = await app.get("/v1/models/tiny-random")
        assert models["meta"]["variations"] is False
        for path, fields in (
            (GENERATIONS, {"variation_strength": 0.2}),
            ("/sdapi/v1/txt2img", {"subseed_strength": 0.2}),
            ("/v1/images/sets", {"matrix": {"variation_strength": [0, 0.2]}, "prompts": ["a cat"]}),
        ):
            asked = {name: value for name, value in SMALL.items() if name != "prompt" or "sets" not in path}
            status, body = await app.post(path, **{**asked, **fields})
            assert status == 400
            words = str(body.get("error", body))
            assert "cannot mix the noise of two seeds; scripts/install builds one that can" in words
        assert await generated(app, subseed=-1, subseed_strength=0)


async def test_a_dry_run_and_a_set_tell_it(running: RunningApp) -> None:
    """The strength is one of the fields that a set combines; the seed is drawn once for all of them."""
    async with running(engine=QuickEngine) as app:
        _, dry = await app.post(GENERATIONS, **SMALL, variation_seed=9, variation_strength=0.5, dry_run=True)
        assert (dry["parameters"]["variation_seed"], dry["parameters"]["variation_strength"]) == (9, 0.5)
        wanted = {"prompts": ["a cat"], "size": "64x64", "matrix": {"variation_strength": [0, 0.5, 1]}}
        status, made = await app.post("/v1/images/sets", **wanted)
        assert (status, made["varies"]) == (202, ["variation_strength"])
        assert [item["variation_strength"] for item in made["items"]] == [0, 0.5, 1]
