"""Which dialects a server speaks: chosen by name, added by anybody's package, each in a place of its own."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import gguf_imagegen.api
from gguf_imagegen.api.app import DIALECTS, OURS
from gguf_imagegen.api.dialect import Dialect, chosen
from gguf_imagegen.vocabulary.errors import InvalidRequest
from tests.api.client import GENERATIONS, SMALL, noise, png
from tests.conftest import DEADLINE, App, RunningApp
from tests.fake_engines import QuickEngine
from tests.weights import write_lora, write_upscaler

DOC = (Path(__file__).parents[2] / "docs/dialects.md").read_text(encoding="utf-8")
API = Path(gguf_imagegen.api.__file__).parent
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a package of one module and one entry point, as pip leaves it."""

    def write(module: str) -> None:
        (tmp_path / "toy_dialect.py").write_text(module, encoding="utf-8")
        info = tmp_path / "toy_dialect-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-dialect\nVersion: 1.0\n")
        group, point = re.findall(r'\[project\.entry-points\."(.*)"\]\n(.*)', code("toml"))[0]
        (info / "entry_points.txt").write_text(f"[{group}]\n{point.replace(chr(34), '')}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "toy_dialect", raising=False)

    return write


def code(language: str) -> str:
    """The one block of the document in this language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", DOC, re.DOTALL)
    return str(found)


async def paths(app: App) -> set[str]:
    return set((await app.get("/openapi.json"))[1]["paths"])


# -- which are spoken ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.name)
async def test_one_alone(running: RunningApp, dialect: Dialect) -> None:
    """Its routes and our own are there, and are described; those of others are not."""
    async with running(engine=QuickEngine, dialects=(dialect.name,)) as app:
        assert await paths(app) == {route.path for each in (*OURS, dialect) for route in each.routes}
        others = {root for each in DIALECTS if each is not dialect for root in each.roots}
        for root in others:
            status, body = await app.get(f"{root}v1/nothing")
            assert (status, body["error"]["code"]) == (404, "not_found")


async def test_errors_without_a_route_are_in_the_words_of_the_path(running: RunningApp) -> None:
    """What is below a dialect's root and is not there, or takes another method, is refused as it refuses."""
    async with running(engine=QuickEngine) as app:
        assert (await app.get("/v1-openai/nothing"))[1]["error"]["code"] == 404
        assert (await app.get("/v1-openai/image/edit"))[1]["error"]["code"] == 405
        assert "there is no GET" in (await app.get("/sdcpp/v1/nothing"))[1]["error"]


async def test_a_prompt_holds_fields_of_a_dialect_that_is_spoken(running: RunningApp) -> None:
    """sd.cpp's block counts with sd.cpp's dialect, and is words of the prompt without it."""
    body = {**SMALL, "prompt": 'a cat <sd_cpp_extra_args>{"seed": 5}</sd_cpp_extra_args>', "seed": 4}
    seeds = []
    for dialects in ("openai,sdcpp", "openai"):
        async with running(engine=QuickEngine, dialects=dialects) as app:
            _, answer = await app.post(GENERATIONS, **body)
            seeds.append(answer["data"][0]["seed"])
    assert seeds == [5, 4]


async def test_kwargs_hold_fields_where_xinference_is_spoken(running: RunningApp) -> None:
    """They count with Xinference's dialect, and are an unknown field without it."""
    body = {**SMALL, "seed": None, "kwargs": '{"seed": 5}'}
    for dialects, spoken in (("openai,xinference", True), ("openai", False)):
        async with running(engine=QuickEngine, dialects=dialects) as app:
            _, answer = await app.post(GENERATIONS, **body)
            described = (await app.get("/openapi.json"))[1]["components"]["schemas"]["ImageRequest"]
        assert ("kwargs" in described["properties"]) == spoken
        assert (answer["data"][0]["seed"] == 5, answer["warnings"] == []) == (spoken, spoken)


async def test_streams_are_openais_without_llama_box(running: RunningApp) -> None:
    """Plain curl gets llama-box's frames where they are spoken."""
    body = {**SMALL, "stream": True}
    found = []
    for dialects in ("all", "openai"):
        async with (
            running(engine=QuickEngine, dialects=dialects) as app,
            app.session.post(app.url + GENERATIONS, json=body) as answer,
        ):
            found.append("image.chunk" in await answer.text())
    assert found == [True, False]


def test_an_unknown_name_ends_in_words(model_dir: Path, tmp_path: Path) -> None:
    """The known names are told."""
    command = [sys.executable, "-m", "gguf_imagegen", "serve", "--dialects", "openai,klingon"]
    flags = ["--model", "tiny-random", "--models-dir", str(model_dir), "--state-dir", str(tmp_path)]
    run = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=DEADLINE)
    assert run.returncode == 1
    words = "--dialects: there is no 'klingon'; known: all, openai, "
    assert words in " ".join(run.stderr.split())


# -- of strangers -------------------------------------------------------------------------------------


async def test_the_dialect_of_the_document(running: RunningApp, install: Install) -> None:
    """It is served, described, and refuses in its own words."""
    install(code("python"))
    async with running(engine=QuickEngine) as app:
        async with app.session.get(f"{app.url}/toy/draw", params={"prompt": "a cat"}) as answer:
            assert answer.content_type == "image/png"
            assert (await answer.read()).startswith(b"\x89PNG")
        assert await app.get("/toy/draw") == (400, {"oops": "prompt: is required and must not be empty"})
        assert (await app.get("/toy/else"))[1].keys() == {"oops"}
        document = (await app.get("/openapi.json"))[1]
        operation = document["paths"]["/toy/draw"]["get"]
    assert operation["tags"] == ["Toy"]
    assert operation["summary"] == "The picture of a prompt"
    assert document["components"]["schemas"]["Oops"]["required"] == ["oops"]


@pytest.mark.parametrize("dialects", ["openai,toy", "openai"])
async def test_a_strangers_dialect_is_chosen_by_name(
    running: RunningApp, install: Install, dialects: str
) -> None:
    install(code("python"))
    async with running(engine=QuickEngine, dialects=dialects) as app:
        assert ("/toy/draw" in await paths(app)) == ("toy" in dialects)


@pytest.mark.parametrize(
    ("module", "words"),
    [("1 / 0", "cannot be loaded: division by zero"), ("DIALECT = 5", "is no Dialect but 5")],
)
def test_a_broken_package_is_named(install: Install, module: str, words: str) -> None:
    install(module)
    assert list(chosen(["openai"], DIALECTS)) == [DIALECTS[0]]
    with pytest.raises(InvalidRequest, match=f"--dialects: 'toy' of toy-dialect {words}"):
        list(chosen(["all"], DIALECTS))


# -- a place of its own -------------------------------------------------------------------------------


def test_a_dialect_is_one_place_and_one_line() -> None:
    """Nothing but the list in `app` imports a dialect, or another one; nobody else knows its paths."""
    outside = [path for path in API.rglob("*.py") if path.relative_to(API).parts[0] != "dialects"]
    roots = [root for each in DIALECTS for root in each.roots]
    for path in outside:
        text = path.read_text(encoding="utf-8")
        words = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        paths = [word for word in words if isinstance(word, str) and word.startswith("/")]
        assert not [word for word in paths if word.startswith(tuple(roots))], path
        assert ("gguf_imagegen.api.dialects" in text) == (path.name == "app.py"), path


# -- what the page needs instead ----------------------------------------------------------------------


async def test_addons_are_told(running: RunningApp, tmp_path: Path) -> None:
    """The names that a request may use, of both kinds."""
    write_lora(tmp_path / "watercolour.gguf")
    write_upscaler(tmp_path / "double.pth.safetensors", 2)
    async with running(engine=QuickEngine, dialects="openai", lora_dir=tmp_path) as app:
        status, body = await app.get("/v1/addons")
    assert status == 200
    assert body["object"] == "addons"
    assert "watercolour" in [each["name"] for each in body["loras"]]
    assert body["upscalers"] == []


async def test_what_is_written_in_a_picture(running: RunningApp) -> None:
    """As a data URL, base64 or a form's file; nothing where nothing is written; no picture is refused."""
    async with running(engine=QuickEngine, dialects="openai") as app:
        _, made = await app.post(GENERATIONS, **SMALL, response_format="b64_json", seed=7)
        picture = made["data"][0]["b64_json"]
        status, body = await app.post("/v1/images/info", image=f"data:image/png;base64,{picture}")
        assert (status, body["object"], body["parameters"]["Seed"]) == (200, "image.info", "7")
        assert body["text"].startswith(body["parameters"]["Prompt"])
        form = {"image": io.BytesIO(png(noise()))}
        async with app.session.post(f"{app.url}/v1/images/info", data=form) as answer:
            assert await answer.json() == {"object": "image.info", "text": "", "parameters": {}}
        for wrong, code in ((5, "invalid_request"), ("bm8=", "invalid_image"), (None, "invalid_request")):
            status, body = await app.post("/v1/images/info", image=wrong)
            assert (status, body["error"]["code"], body["error"]["param"]) == (400, code, "image")
