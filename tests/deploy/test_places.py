"""deploy/: configurations for other programs have the fields that those document, and flags that we have."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from gguf_imagegen.settings import Settings
from scripts.fill_release import fill
from tests.api.client import GENERATIONS, eventually, picture
from tests.conftest import App, RunningApp
from tests.fake_engines import QuickEngine

DEPLOY = Path(__file__).parents[2] / "deploy"
TEXT = {"type": "string"}
LLAMA_SWAP = {
    "type": "object",
    "additionalProperties": False,
    "required": ["models"],
    "properties": {
        "healthCheckTimeout": {"type": "integer", "minimum": 15},
        "macros": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}},
        "models": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["cmd"],
                "properties": {
                    "cmd": {**TEXT, "minLength": 1},
                    "proxy": {**TEXT, "pattern": "^https?://"},
                    "checkEndpoint": {**TEXT, "pattern": "^(/.*|none)$"},
                    "ttl": {"type": "integer", "minimum": -1},
                    "aliases": {"type": "array", "items": TEXT, "uniqueItems": True},
                    "useModelName": TEXT,
                },
            },
        },
    },
}
"""Of config-schema.json in mostlygeek/llama-swap what is used here."""


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def flags_of(command: str) -> dict[str, str]:
    """`--flag value` of a command of `gguf-imagegen serve`."""
    program, verb, *words = shlex.split(command)
    assert (Path(program).name, verb) == ("gguf-imagegen", "serve")
    return dict(zip(words[::2], words[1::2], strict=True))


def test_llama_swap() -> None:
    """The documented schema; ports and flags fit; a model is asked for by the name it is served under."""
    config = load("llama-swap.yaml")
    Draft7Validator(LLAMA_SWAP).validate(config)
    for name, model in config["models"].items():
        command = re.sub(r"\$\{(\w+)\}", lambda found: config["macros"].get(found[1], found[0]), model["cmd"])
        flags = flags_of(command)
        assert flags.keys() <= {f"--{field.replace('_', '-')}" for field in Settings.model_fields}
        assert flags["--port"] == "${PORT}"
        assert model["proxy"] == "http://127.0.0.1:${PORT}"
        assert name in (flags.get("--model", "glyph-128"), model.get("useModelName"))


async def test_llama_swaps_requests(running: RunningApp) -> None:
    """It checks /health, and passes on the host name of its clients, which has to be allowed."""
    host = {"Host": "my-server.local:8080"}
    for allowed, status in (("my-server.local", 200), ("", 403)):
        async with running(engine=QuickEngine, allowed_hosts=allowed) as app:
            check = load("llama-swap.yaml")["models"]["glyph-128"]["checkEndpoint"]
            await eventually("the server is ready", partial(_is_ok, app, check))
            asked = {"prompt": "a", "model": "tiny-random"}
            async with app.session.post(app.url + GENERATIONS, json=asked, headers=host) as answer:
                assert answer.status == status


async def _is_ok(app: App, path: str) -> bool:
    return (await app.get(path))[0] == 200


async def test_home_assistant(running: RunningApp) -> None:
    """The command's payload makes a picture with an address; the sensor reads what /health has."""
    config = load("home-assistant.yaml")
    draw = config["rest_command"]["draw"]
    assert draw["payload"] == '{{ {"prompt": prompt, "response_format": "url"} | to_json }}'
    async with running(engine=QuickEngine) as app:
        path = draw["url"].removeprefix("http://127.0.0.1:8080")
        status, body = await app.post(path, prompt="rain", response_format="url")
        assert status == 200
        assert body["data"][0]["url"].startswith("http")
        (sensor,) = config["rest"][0]["sensor"]
        (field,) = re.findall(r"value_json\.(\w+)", sensor["value_template"])
        assert isinstance((await app.get("/health"))[1][field], int)


async def test_n8n(running: RunningApp) -> None:
    """Connections lead to nodes; the workflow's request makes the picture that its file node reads."""
    workflow = json.loads((DEPLOY / "n8n.json").read_text(encoding="utf-8"))
    nodes = {node["name"]: node for node in workflow["nodes"]}
    for name, ways in workflow["connections"].items():
        assert {name, *(to["node"] for way in ways["main"] for to in way)} <= nodes.keys()
    asked = nodes["Draw"]["parameters"]
    assert asked["jsonBody"] == "={{ JSON.stringify({prompt: $json.prompt, response_format: 'b64_json'}) }}"
    assert nodes["File"]["parameters"]["sourceProperty"] == "data[0].b64_json"
    async with running(engine=QuickEngine) as app:
        path = asked["url"].removeprefix("http://127.0.0.1:8080")
        _, body = await app.post(path, prompt="rain", response_format="b64_json")
    picture(body["data"][0]["b64_json"])


@pytest.mark.parametrize("template", ["homebrew/gguf-imagegen.rb", "winget/GgufImagegen.yaml"])
def test_package_managers(template: str, tmp_path: Path) -> None:
    """A release fills in its version, addresses and the hashes of what it carries."""
    for name in ("gguf_imagegen-1.2.3.tar.gz", "gguf-imagegen-windows-x86_64.zip"):
        (tmp_path / name).write_bytes(name.encode())
    fill(DEPLOY, tmp_path, "1.2.3", "https://example.org/owner/gguf-imagegen")
    text = (tmp_path / Path(template).name).read_text(encoding="utf-8")
    kind = ".tar.gz" if template.endswith(".rb") else ".zip"
    (archive,) = tmp_path.glob("*" + kind)
    assert hashlib.sha256(archive.name.encode()).hexdigest() in text
    assert f"https://example.org/owner/gguf-imagegen/releases/download/v1.2.3/{archive.name}" in text
    assert not re.search(r"\$\w", text.replace("$schema", ""))
    if template.endswith(".yaml"):
        manifest = yaml.safe_load(text)
        assert (manifest["PackageVersion"], manifest["ManifestType"]) == ("1.2.3", "singleton")
