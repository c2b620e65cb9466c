"""Backends: the one of the documentation works, and lists, errors and documents follow its abilities."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gguf_imagegen.engines.backend import UnknownBackend, named_backend
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.vocabulary.abilities import Abilities
from tests.api.client import picture
from tests.conftest import RunningApp, ServerProcess

DOCS = (Path(__file__).parents[2] / "docs" / "engine.md").read_text(encoding="utf-8")
GENERATIONS = "/v1/images/generations"
ASKED = {"prompt": "a cat", "size": "64x64"}


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    """What the examples of the documentation define."""
    names: dict[str, Any] = {"__name__": "grey"}
    for example in examples():
        exec(compile(example, "docs/engine.md", "exec"), names)
    return names


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCS, re.S)


async def test_the_documented_test_passes(documented: dict[str, Any], running: RunningApp) -> None:
    """As it stands there."""
    await documented["test_grey_pictures"](running)


async def test_a_server_with_the_documented_backend(
    serve: Callable[..., ServerProcess], session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """Named on the command line, it draws what it says, on the lanes it says."""
    (tmp_path / "grey.py").write_text(examples()[0])
    server = serve("--backend", "grey:Grey", env={"PYTHONPATH": str(tmp_path)})
    async with session.post(server.url + GENERATIONS, json=ASKED) as answer:
        assert answer.status == 200
        drawn = picture((await answer.json())["data"][0]["b64_json"])
    assert drawn.getcolors() == [(64 * 64, (128, 128, 128))]
    async with session.get(server.url + "/health") as answer:
        assert [lane["name"] for lane in (await answer.json())["lanes"]] == ["grey:0", "grey:1"]


async def test_everything_follows_its_abilities(documented: dict[str, Any], running: RunningApp) -> None:
    """What it cannot do is neither listed nor accepted, in any dialect."""
    async with running(backend=documented["Grey"]) as app:
        _, models = await app.get("/v1/models")
        assert (models["data"][0]["meta"]["samplers"], models["data"][0]["meta"]["schedules"]) == (
            ["grey"], ["even"],
        )  # fmt: skip
        _, native = await app.get("/sdcpp/v1/capabilities")
        assert (native["samplers"], native["schedulers"], native["upscalers"]) == (
            ["grey"], ["even"], [{"name": "None"}],
        )  # fmt: skip
        assert (await app.get("/sdapi/v1/samplers"))[1] == [{"name": "grey", "aliases": [], "options": {}}]
        _, document = await app.get("/openapi.json")
        fields = document["components"]["schemas"]["ImageRequest"]["properties"]
        assert [part["enum"] for part in fields["sampler"]["anyOf"] if "enum" in part] == [["grey"]]
        assert (await app.post(GENERATIONS, **ASKED, sampler="grey"))[0] == 200
        assert (await app.post("/sdapi/v1/txt2img", prompt="a cat", sampler_name="Grey"))[0] == 200
        for more, words in (
            ({"sampler": "euler"}, "sampler: unknown sampler 'euler' Valid: grey"),
            ({"upscale": 2}, "upscale: the engine of this server cannot do that"),
        ):
            status, body = await app.post(GENERATIONS, **ASKED, **more)
            assert (status, body["error"]["message"].replace(";", "")) == (400, words)


class Flux(SdCpp):
    """An engine for models of one family."""

    def abilities(self) -> Abilities:
        return Abilities(samplers=("euler",), schedules=("discrete",), families=("flux",))


async def test_a_family_it_cannot_run(running: RunningApp) -> None:
    """Is refused with those that it can."""
    async with running(backend=Flux) as app:
        status, body = await app.post(GENERATIONS, **ASKED)
        words = "model: the engine of this server cannot run ovis-image, only flux"
        assert (status, body["error"]["message"]) == (400, words)


def test_backends_by_name() -> None:
    """Ours needs no entry point; a wrong name is told before anything is loaded."""
    assert named_backend("sdcpp") is SdCpp
    with pytest.raises(UnknownBackend, match="there is no backend 'nope'"):
        named_backend("nope")
    with pytest.raises(UnknownBackend, match="cannot be imported: No module named 'nowhere'"):
        named_backend("nowhere:Nope")


def test_a_wrong_backend_ends_the_server_in_words(tmp_path: Path) -> None:
    """With exit code 1."""
    command = [sys.executable, "-m", "gguf_imagegen", "serve", "--backend", "nope", "--ephemeral"]
    run = subprocess.run(
        [*command, "--models-dir", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, "there is no backend 'nope'" in run.stderr) == (1, True)
