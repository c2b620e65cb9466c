"""Findings in catalogs: the shipped one has none, each fault is told, and the hub is asked for no bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from gguf_imagegen.catalog.check import Checked, Words, check_catalogs, check_text
from gguf_imagegen.catalog.entry import Source
from gguf_imagegen.download.drift import AT_ONCE, check_hub
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.vocabulary.errors import HubUnreachable
from tests.commands.test_cli import cli

WORDS = Words(ABILITIES.samplers, ABILITIES.schedules)
SHA, OTHER_SHA = "a" * 64, "b" * 64


def check(**models: dict[str, object]) -> list[str]:
    return said(
        check_text(yaml.safe_dump({"version": 1, "models": models}, sort_keys=False), "my.yaml", WORDS)
    )


def said(checked: Checked) -> list[str]:
    return [f"{finding.where}: {finding.words}" for finding in checked.findings]


def sd1(**fields: object) -> dict[str, object]:
    return {"family": "sd1", "files": {"model": "x.gguf"}, **fields}


def hosted(family: str = "sd1", role: str = "model", **fields: object) -> dict[str, object]:
    return {"family": family, "files": {role: {"repo": "owner/repo", "file": "x.gguf", **fields}}}


def test_the_built_in_catalog_has_no_faults() -> None:
    """What is shipped passes its own check."""
    assert said(check_catalogs(None, WORDS)) == []


def test_a_good_catalog_has_no_findings() -> None:
    """Different models, with quantisations and a shared component, are nothing to tell."""
    quants = {"Q8_0": {"file": "a.gguf", "sha256": SHA}, "Q4_0": {"file": "b.gguf", "sha256": OTHER_SHA}}
    vae = {"repo": "owner/vae", "file": "vae.safetensors", "bytes": 5}
    llm = {"repo": "owner/llm", "file": "llm.gguf"}
    model = {"family": "z-image", "main": "diffusion", "repo": "owner/repo", "quants": quants}
    models = {"z": {**model, "files": {"vae": "vae", "llm": llm}, "aliases": ["Z"]}, "one": sd1()}
    text = yaml.safe_dump({"version": 1, "components": {"vae": vae}, "models": models})
    checked = check_text(text, "my.yaml", WORDS)
    assert said(checked) == []
    assert len(checked.entries) == 3
    assert {source.repo for source in checked.sources.values()} == {"owner/repo", "owner/vae", "owner/llm"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"files": {"vae": "x.gguf"}}, "x: files: a model has one file of the role model, or diffusion"),
        (
            {"files": {"diffusion": "x.gguf", "vae": "v.gguf"}},
            "x: files: a CLIP text encoder is missing, give clip_l",
        ),
        ({"files": {"model": "x.ckpt"}}, "x: files: model: x.ckpt is neither .gguf nor .safetensors"),
        ({"defaults": {"sampler": "eulerr"}}, "x: defaults: sampler 'eulerr' is unknown"),
        ({"defaults": {"schedule": "slow"}}, "x: defaults: schedule 'slow' is unknown"),
        ({"defaults": {"size": "520x512"}}, "x: defaults: size 520x512 is not a multiple of 64"),
        (
            {"defaults": {"size": "4096x512"}, "limits": {"max_side": 2048}},
            "x: defaults: size 4096x512 is beyond the model's own limits",
        ),
        ({"limits": {"max_pixels": 4096}}, "x: defaults: size 512x512 is beyond the model's own limits"),
        ({"limits": {"max_steps": 10}}, "x: defaults: steps: 20 is more than max_steps, 10"),
        ({"quality": {"low": 0}}, "x: defaults: quality low: 0 is less than 1"),
        ({"quality": {"low": 9, "high": 8}}, "x: defaults: quality: a higher one has fewer steps"),
        (
            {"defaults": {"schedule": "karras", "steps": 1}},
            "x: defaults: steps: schedule 'karras' needs at least 2 steps",
        ),
        ({"capabilities": ["inpainting", "inpainting"]}, "x: capabilities: one stands twice"),
        ({"family": "sd9"}, "x: entry: Value error, family: 'sd9' is not one this server can run"),
        ({"colour": "red"}, "x: colour: Extra inputs are not permitted"),
    ],
)
def test_faults_of_one_model(fields: dict[str, object], words: str) -> None:
    """Each is one finding that names the file, the model and the field."""
    assert check(x=sd1(**fields)) == [f"my.yaml: {words}"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {"family": "sd2", "files": {"model": "x.gguf"}, "defaults": {"schedule": "ays"}},
            "x: defaults: schedule 'ays' is not defined for sd2",
        ),
        (
            {"family": "flux2", "files": {"model": "x.gguf"}, "capabilities": ["inpainting"]},
            "x: capabilities: reference-edit: flux2 edits by reference, which 'edits' may change",
        ),
        (
            {
                "family": "qwen-image",
                "files": {"model": "x.gguf"},
                "capabilities": ["reference-edit"],
                "edits": "reference",
            },
            "x: capabilities: reference-edit: without llm_vision the engine does not see the picture",
        ),
        (
            hosted("sd1", rename="text-encoders"),
            "x: files: model: only whole SD3 and FLUX files have text encoders to rename",
        ),
        (
            hosted("flux", repo="gpustack/FLUX.1-dev-GGUF"),
            "x: files: model: the engine does not find its text encoders; say rename: text-encoders",
        ),
    ],
)
def test_faults_of_a_family(model: dict[str, object], words: str) -> None:
    """What a family cannot do, and what its files need, is known."""
    assert check(x=model) == [f"my.yaml: {words}"]


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (sd1(aliases=["Name"]), sd1(aliases=["name"]), "b: its name 'name' differs in capitals alone from"),
        (hosted(bytes=5), hosted(bytes=6), "b: files.model: bytes of x.gguf is 6, but 5 in my.yaml: a"),
        (hosted(sha256=SHA), hosted(sha256=OTHER_SHA), f"b: files.model: sha256 of x.gguf is {OTHER_SHA}"),
        (hosted(gated=True), hosted(), "b: files.model: gated of x.gguf is False, but True in my.yaml: a"),
        (
            hosted(file="a.gguf", sha256=SHA, bytes=5),
            hosted(sha256=SHA, bytes=6),
            "b: files.model: sha256 is that of a file of another size, in my.yaml: a: files.model",
        ),
        (hosted(revision="v1"), hosted(), "b: files.model: x.gguf would lie where another revision of it"),
    ],
)
def test_contradictions(one: dict[str, object], other: dict[str, object], words: str) -> None:
    """Two models that cannot both be right are told once, at the second."""
    (finding,) = check(a=one, b=other)
    assert finding.startswith(f"my.yaml: {words}")


def test_two_quantisations_with_one_file() -> None:
    """A line that was copied and not changed is seen."""
    quants = {"Q8_0": {"file": "x.gguf"}, "Q4_0": {"file": "x.gguf"}}
    model: dict[str, object] = {"family": "sd1", "repo": "owner/repo", "quants": quants}
    assert check(x=model) == ["my.yaml: x:Q4_0: files.model: x:Q8_0 has the same file"]


def test_one_fault_does_not_hide_others() -> None:
    """Models are read one by one when the whole cannot be; the good ones are there."""
    bad, worse, good = sd1(colour="red"), sd1(family="sd9"), sd1(defaults={"sampler": "x"})
    text = yaml.safe_dump(
        {"version": 1, "models": {"bad": bad, "worse": worse, "good": good}}, sort_keys=False
    )
    checked = check_text(text, "my.yaml", WORDS)
    assert [finding.split(": ")[1] for finding in said(checked)] == ["bad", "worse", "good"]
    assert [entry.id for entry in checked.entries] == ["good"]


def test_keys_that_stand_twice() -> None:
    """YAML's reader takes the last of two models of one name; the check does not."""
    text = "version: 1\nmodels:\n" + 2 * "  x: {family: sd1, files: {model: x.gguf}}\n"
    assert said(check_text(text, "my.yaml", WORDS)) == ["my.yaml: models.x: stands twice, again in line 4"]


@pytest.mark.parametrize(
    "text", ["a: [", "[]", "version: 2\nmodels: {}", "version: 1\nmodels: [1]", "&a {x: *a}"]
)
def test_what_is_no_catalog(text: str) -> None:
    """Broken YAML, something else, or a knot is one finding in one line."""
    (finding,) = check_text(text, "my.yaml", WORDS).findings
    assert finding.fault
    assert "\n" not in str(finding)


def test_the_command(tmp_path: Path) -> None:
    """One line a finding and exit code 1; without faults 0; a catalog of one's own may name components."""
    path = tmp_path / "my.yaml"
    good = {"family": "flux", "files": {"diffusion": "x.gguf", "vae": "flux-ae", "clip_l": "clip_l"}}
    path.write_text(yaml.safe_dump({"version": 1, "models": {"x": good}}))
    run = cli("catalog", "check", "--catalog", path)
    assert run.returncode == 1, run.stderr
    finding, count = run.stdout.splitlines()
    assert finding == "FAULT my.yaml: x: files: the T5-XXL text encoder is missing, give t5xxl"
    assert count.endswith("1 faults")
    run = cli("catalog", "check")
    assert (run.returncode, len(run.stdout.splitlines())) == (0, 1)


# -- the hub ------------------------------------------------------------------------------------------


class LocalHub:
    """Answers HEAD as the hub does: large files are redirected, with size and hash in the headers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.failures = 0
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.method == "HEAD"
        self.asked.append(request.path)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        if self.failures:
            self.failures -= 1
            return web.Response(status=503)
        repo = request.match_info["repo"]
        if repo in self.gated and "Authorization" not in request.headers:
            return web.Response(status=401, headers={"X-Error-Code": "GatedRepo"})
        if repo == "old":
            return web.Response(status=307, headers={"Location": request.path.replace("/old/", "/repo/")})
        content = self.files.get(request.match_info["file"])
        if content is None:
            return web.Response(status=404, headers={"X-Error-Code": "EntryNotFound"})
        if len(content) < 10:
            return web.Response(body=content, headers={"ETag": '"' + "c" * 40 + '"'})
        linked = {
            "Location": "http://127.0.0.1:9/elsewhere",
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        return web.Response(status=302, headers=linked)


@pytest_asyncio.fixture
async def hub(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LocalHub]:
    local = LocalHub()
    app = web.Application()
    app.router.add_route("*", "/{owner}/{repo}/resolve/{revision}/{file:.*}", local.handle)
    server = TestServer(app)
    await server.start_server()
    monkeypatch.setenv("HF_ENDPOINT", str(server.make_url("")))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield local
    await server.close()


LARGE = b"0123456789"
LARGE_SHA = hashlib.sha256(LARGE).hexdigest()


def source(file: str = "x.gguf", repo: str = "repo", **fields: object) -> Source:
    return Source.model_validate({"repo": f"owner/{repo}", "file": file, **fields})


async def drift(**sources: Source) -> list[tuple[str, bool]]:
    return [(f"{f.where}: {f.words}", f.fault) for f in await asyncio.to_thread(check_hub, sources)]


async def test_nothing_has_changed(hub: LocalHub) -> None:
    """Right sizes and hashes, and what the catalog does not state, are no findings; a file is asked once."""
    hub.files = {"x.gguf": LARGE, "small.json": b"{}"}
    found = await drift(
        a=source(bytes=10, sha256=LARGE_SHA),
        b=source(bytes=10, sha256=LARGE_SHA),
        c=source(repo="old"),
        d=source("small.json", bytes=2, sha256=SHA),
    )
    assert found == []
    assert hub.asked.count("/owner/repo/resolve/main/x.gguf") == 2  # once for `c`, whose repository moved


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (source(bytes=11), "x.gguf: has 10 bytes on the hub, 11 in the catalog"),
        (source(sha256=SHA), f"x.gguf: sha256 on the hub is {LARGE_SHA}"),
        (source("small.json", bytes=3), "small.json: has 2 bytes on the hub, 3 in the catalog"),
        (source("gone.gguf"), "the hub has no file 'gone.gguf' in owner/repo, revision main"),
        (source(gated=True), "x.gguf: owner/repo is not gated any more"),
        (source(repo="gated"), "x.gguf: owner/gated is gated now, or private"),
    ],
)
async def test_what_has_changed(mine: Source, words: str, hub: LocalHub) -> None:
    """Each difference between catalog and hub is a fault in one line."""
    hub.files, hub.gated = {"x.gguf": LARGE, "small.json": b"{}"}, {"gated"}
    assert await drift(a=mine) == [(f"a: {words}", True)]


async def test_what_is_gated_as_the_catalog_says(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a token a gated file is a note; with one it is compared."""
    hub.files, hub.gated = {"x.gguf": LARGE}, {"gated"}
    ((words, fault),) = await drift(a=source(repo="gated", gated=True, bytes=11))
    assert "set HF_TOKEN" in words
    assert not fault
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert await drift(a=source(repo="gated", gated=True, bytes=11)) == [
        ("a: x.gguf: has 10 bytes on the hub, 11 in the catalog", True)
    ]


async def test_few_are_asked_at_once(hub: LocalHub) -> None:
    """Many files are asked for together, but never more than the bound."""
    hub.files = {f"{number}.gguf": LARGE for number in range(60)}
    assert await drift(**{name: source(name, bytes=10) for name in hub.files}) == []
    assert 1 < hub.most_at_once <= AT_ONCE


async def test_a_bad_moment_is_forgiven(hub: LocalHub) -> None:
    """One failure of the hub is asked again; a second one is a fault."""
    hub.files, hub.failures = {"x.gguf": LARGE}, 1
    assert await drift(a=source(bytes=10)) == []
    hub.failures = 2
    assert await drift(a=source(bytes=10)) == [
        ("a: x.gguf: the hub answers with status 503; try again later", True)
    ]


async def test_no_hub_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached is one error, not one for each file."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(HubUnreachable):
        await drift(a=source("a.gguf"), b=source("b.gguf"))


async def test_the_command_asks_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    """`--online` adds what has changed; the built-in catalog's files are not on this hub."""
    run = await asyncio.to_thread(cli, "catalog", "check", "--online")
    assert run.returncode == 1, run.stderr
    assert all("has no file" in line for line in run.stdout.splitlines()[:-1])
    assert len(run.stdout.splitlines()) > 10
