"""docs/clients.md, api.md and dialects.md keep their word: blocks run, routes and fields are complete."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

from gguf_imagegen.api.app import ROUTES
from gguf_imagegen.api.dialects.a1111 import request as a1111
from gguf_imagegen.api.dialects.sdcpp import routes as sdcpp_routes
from gguf_imagegen.api.dialects.sdcpp.request import LEAVES
from gguf_imagegen.engines.sdcpp.abilities import ABILITIES
from gguf_imagegen.planning.request import (
    MAX_SEED,
    HiresRequest,
    ImageRequest,
    LoraRequest,
    StreamOptions,
)
from gguf_imagegen.planning.without_effect import WITHOUT_EFFECT
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.errors import ImagegenError, PullFailed
from tests.api.client import noise
from tests.api.recipes import write_catalog
from tests.conftest import DEADLINE, ServerProcess

pytestmark = pytest.mark.posix

ROOT = Path(__file__).parents[1]
CLIENTS = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
API = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("api.md", "dialects.md"))
INSTALLED = ROOT / "build" / "clients"
"""Filled by tests/clients/install, which scripts/test runs."""
OLD_PYTHON = INSTALLED / "openai-2" / "bin" / "python"
NODE = INSTALLED / "node_modules" / ".bin" / "node"
KEY = "key-of-the-tests"
ENDS = "\x1e"
RUN_EACH = f"""
import os, runpy, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    runpy.run_path("block.py")
    print(end={ENDS!r})
"""
"""Runs the block in each of these folders."""


@dataclass(frozen=True)
class Block:
    """A block of the page that can be run; `name` tells it from the others of its client."""

    client: str
    name: str
    language: str
    code: str


MARK = re.compile(r"^## ([^\n]+)$|^```(sh|python|js)\n(.*?)^```$", re.M | re.S)


def _blocks() -> Iterator[Block]:
    client, number = "", 0
    for heading, language, code in MARK.findall(CLIENTS):
        client, number = (heading, 0) if heading else (client, number + 1)
        if code:
            yield Block(client, f"{client} {number}", language, code)


BLOCKS = list(_blocks())
OF_OPENAI = [block for block in BLOCKS if "from openai import" in block.code]


@pytest.fixture(scope="module")
def servers(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[bool, ServerProcess]]:
    """Two servers on the tiny model: without a key, and with one."""
    catalog = str(write_catalog(tmp_path_factory.mktemp("catalog")))
    started = {
        keyed: ServerProcess(model_dir, "--catalog", catalog, "--grace", "1", *flags)
        for keyed, flags in ((False, ()), (True, ("--api-key", KEY)))
    }
    for server in started.values():
        server.wait_until_ready()
    yield started
    for server in started.values():
        server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands: two pictures, this project's scripts, Node's packages."""
    noise(128, 128).save(tmp_path / "cat.png")
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "node_modules").symlink_to(INSTALLED / "node_modules")
    return tmp_path


def run(block: Block, server: ServerProcess, folder: Path) -> str:
    """Run a block in this folder; what it printed."""
    file = folder / f"block.{'mjs' if block.language == 'js' else block.language}"
    file.write_text(localised(block, server))
    commands = {"sh": ["bash", "-o", "pipefail"], "python": [sys.executable], "js": [str(NODE)]}
    return executed([*commands[block.language], file.name], folder)


def localised(block: Block, server: ServerProcess) -> str:
    """A block as it stands, but for host, port, key and the model's name."""
    where = urlsplit(server.url).netloc
    code = block.code.replace("127.0.0.1:8080", where).replace("port=8080", f"port={where.partition(':')[2]}")
    return re.sub(r"\bKEY\b", KEY, code).replace("glyph-128", "tiny-random")


def executed(command: list[str], folder: Path, timeout: float = DEADLINE) -> str:
    assert (INSTALLED / "installed").is_file(), "run tests/clients/install once"
    ran = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={key: value for key, value in os.environ.items() if not key.startswith("OPENAI_")},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def check(block: Block, out: str, folder: Path) -> None:
    """It saved pictures, or printed a stream to its end."""
    saved = sorted(folder.glob("out*.png"))
    for path in saved:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (128, 128), path.name
    assert saved or ('"progress":100.0' in out and out.endswith("data: [DONE]\n\n")), out
    if "partial_images" in block.code:
        assert out.split() == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    if '"n": 2' in block.code:
        assert len(saved) == 2
        assert all(re.search(rf"^picture {index}: 100(\.0)? %$", out, re.M) for index in (0, 1))
    if "/progress" in block.code:
        assert json.loads(out) == {"progress": 1.0}


# -- docs/clients.md ----------------------------------------------------------------------------------


def anchor_of(title: str) -> str:
    """As hosts of Markdown name a heading."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


TABLE = [line for line in CLIENTS.splitlines() if line.startswith("| [")]


def test_every_client_has_its_blocks() -> None:
    """Just those clients have blocks that can be run of which the page says that the tests run them."""
    titles = {anchor_of(title): title for title in re.findall(r"^## (.+)$", CLIENTS, re.M)}
    by_tests = {
        titles[anchor]: "by the tests" in row for row in TABLE for anchor in re.findall(r"\(#([\w-]+)\)", row)
    }
    assert set(by_tests) == set(titles.values())
    assert {client for client, told in by_tests.items() if told} == {block.client for block in BLOCKS}


def test_versions_are_those_of_the_page() -> None:
    """What is installed here is what the page says was run."""
    old = printed(str(OLD_PYTHON), "-c", "import openai; print(openai.__version__)").split(".")[0]
    node = printed(str(NODE), "-p", "process.versions.node").split(".")[0]
    package = json.loads((INSTALLED / "node_modules" / "openai" / "package.json").read_text(encoding="utf-8"))
    js = package["version"].split(".")[0]
    row = {re.findall(r"\[(.*?)\]", line)[0]: line for line in TABLE}
    assert f"| {version('openai').split('.')[0]}.x and {old}.x |" in row["openai for Python"]
    assert f"| {js}.x on Node {node} |" in row["openai for Node"]
    assert f"| {version('webuiapi')} |" in row["webuiapi"]
    assert f"| xinference-client {version('xinference-client').split('.')[0]}.x |" in row["Xinference"]


def printed(*command: str) -> str:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=True)
    return ran.stdout.strip()


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_block_runs(block: Block, servers: dict[bool, ServerProcess], folder: Path) -> None:
    """A block of the page does what it is there for."""
    out = run(block, servers["KEY" in block.code], folder)
    check(block, out, folder)


def test_blocks_run_with_the_older_openai(
    servers: dict[bool, ServerProcess], folder: Path, tmp_path: Path
) -> None:
    """The same code with openai 2: all blocks in one process, for the import takes longer than a block."""
    folders = [tmp_path / str(number) for number in range(len(OF_OPENAI))]
    for block, each in zip(OF_OPENAI, folders, strict=True):
        each.mkdir()
        for name in ("cat.png", "mask.png"):
            (each / name).symlink_to(folder / name)
        (each / "block.py").write_text(localised(block, servers[False]))
    command = [str(OLD_PYTHON), "-c", RUN_EACH, *map(str, folders)]
    outs = executed(command, folder, DEADLINE * len(folders)).split(ENDS)
    for block, out, each in zip(OF_OPENAI, outs, folders, strict=False):
        check(block, out, each)
    assert len(outs) == len(OF_OPENAI) + 1


def test_key_is_needed(servers: dict[bool, ServerProcess], folder: Path) -> None:
    """The block with a key shows one that counts: with another there is no picture."""
    (block,) = [block for block in BLOCKS if "KEY" in block.code]
    command = block.code.replace("KEY", "wrong").replace("127.0.0.1:8080", urlsplit(servers[True].url).netloc)
    curl = shlex.split(command.partition("|")[0])
    said = subprocess.run(curl, cwd=folder, capture_output=True, text=True, timeout=DEADLINE).stdout
    assert '"unauthorized"' in said


# -- docs/api.md, docs/dialects.md ---------------------------------------------------------------------


def section(title: str) -> str:
    """The text below a heading, down to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", API, re.M | re.S)
    assert found, title
    return found[2]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def quoted(text: str) -> set[str]:
    """What stands between backticks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def names_of(kind: type[BaseModel]) -> dict[str, tuple[str, ...]]:
    """The aliases of every field."""
    return {name: aliases(field) for name, field in kind.model_fields.items()}


def aliases(field: FieldInfo) -> tuple[str, ...]:
    choices = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
    return tuple(choice for choice in choices if isinstance(choice, str))


def test_routes_are_those_of_the_table() -> None:
    """Every route of the application stands in the document, and none that is not there."""
    told = set(re.findall(r"`((?:GET|POST|DELETE|PUT|PATCH) /[^` ]*)`", API))
    assert told == {f"{route.method} {route.path}" for route in ROUTES}


@pytest.mark.parametrize("name", ImageRequest.model_fields)
def test_field_is_told(name: str) -> None:
    """A field of a request has a row with all its aliases and its bounds."""
    field = ImageRequest.model_fields[name]
    (row,) = [row for row in rows(section("Request fields")) if f"`{name}`" in row[0]]
    assert set(aliases(field)) - {name} == quoted(row[1])
    for bound in field.metadata:
        for side in ("ge", "gt", "le", "lt", "max_length"):
            value = getattr(bound, side, None)
            if value is not None:
                text = str(MAX_SEED) if value == MAX_SEED else f"{value:g}"
                assert re.search(rf"(?<![\d.-]){re.escape(text)}(?![\d])", row[2]), (side, value)


def test_no_other_fields_are_told() -> None:
    """The rows are fields, and `kwargs`, which is none of its own."""
    told = {name for row in rows(section("Request fields")) for name in quoted(row[0])}
    assert told == set(ImageRequest.model_fields) | {"kwargs"}


def test_parts_of_fields_are_told() -> None:
    """So are the fields of objects within fields, the names of samplers, and what has no effect."""
    told = quoted(API)
    for kind in (StreamOptions, LoraRequest, HiresRequest):
        assert {name for key, more in names_of(kind).items() for name in (key, *more)} <= told | {
            name for text in told for name in re.findall(r'"(\w+)"', text)
        }
    assert " ".join(ABILITIES.samplers) in told
    assert " ".join(ABILITIES.schedules) in told
    assert told >= WITHOUT_EFFECT.keys()


def test_fields_of_other_dialects_are_told() -> None:
    """AUTOMATIC1111's keys, with and without effect, and sd.cpp's native ones."""
    keys = {*a1111.A1111Request.model_fields, *a1111.SAME, *a1111.NO_EFFECT}
    keys |= {*a1111.NO_EFFECT_ON_HIRES}
    assert keys <= quoted(section("AUTOMATIC1111"))
    native = {path.partition(".")[0] for path, leaf in LEAVES.items() if leaf.field}
    told = quoted(section("sd.cpp's server"))
    assert native <= told | {text.partition(".")[0] for text in told}


def test_errors_are_told() -> None:
    """Every code stands beside its status, those of pulls in their own paragraph."""
    text = section("Errors")
    by_status = {row[0]: quoted(row[1]) for row in rows(text)}
    assert sdcpp_routes.JobExpired in kinds(ImagegenError)
    for kind in kinds(ImagegenError):
        if issubclass(kind, PullFailed):
            assert kind.code in quoted(text)
        else:
            assert kind.code in by_status[str(kind.status)], kind
        assert kind.type in quoted(text)


def kinds(error: type[ImagegenError]) -> list[type[ImagegenError]]:
    """A class and all below it that belong to the server, not to a test."""
    below = [kind for each in error.__subclasses__() for kind in kinds(each)]
    return [kind for kind in (error, *below) if kind.__module__.startswith("gguf_imagegen")]


def test_limits_are_the_defaults() -> None:
    """The limits told are those of a server without flags."""
    for what, flags, value in rows(section("Limits")):
        for name in quoted(flags):
            default = Settings.model_fields[name.removeprefix("--").replace("-", "_")].default
            assert f"{default:.10g}" in value, what


def test_links_lead_somewhere() -> None:
    """Files and headings that the documents link to are there."""
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text(encoding="utf-8")):
            file, _, anchor = link.partition("#")
            target = path.parent / file if file else path
            assert target.exists(), (path.name, link)
            if anchor:
                headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
                assert anchor in map(anchor_of, headings), (path.name, link)
