"""`gguf-imagegen mcp` as chat programs start it: the SDK's own client on its stdin and stdout."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, ImageContent, TextContent

from gguf_imagegen.commands.mcp import with_files
from gguf_imagegen.vocabulary.errors import InvalidImage
from tests.api.client import noise, picture, png
from tests.conftest import DEADLINE, RunningApp, ServerProcess
from tests.fake_engines import QuickEngine

CAT = {"prompt": "a cat", "size": "64x64", "steps": 2}
COMMAND = ("-m", "gguf_imagegen", "mcp")
MANY = 10_000_000


@asynccontextmanager
async def client(*flags: str, mode: str = "auto", **env: str) -> AsyncIterator[Client]:
    started = StdioServerParameters(
        command=sys.executable, args=[*COMMAND, *flags], env={**os.environ, **env}
    )
    async with Client(started, mode=mode) as made:
        yield made


def words(result: CallToolResult) -> str:
    last = result.content[-1]
    assert isinstance(last, TextContent)
    return last.text


def shown(result: CallToolResult) -> tuple[int, int]:
    (image,) = (each for each in result.content if isinstance(each, ImageContent))
    return picture(image.data).size


def run(*flags: str, code: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(("-c", code) if code else COMMAND), *flags]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **env},
    )


async def test_a_server_that_runs(server: ServerProcess, tmp_path: Path) -> None:
    """Its tools, with progress, and pictures from files of this machine; for a client of the older era."""
    told: list[str] = []
    file = tmp_path / "a picture.png"
    file.write_bytes(png(noise(64, 64)))

    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    async with client("--url", server.url, mode="legacy") as mcp:
        assert "generate_image" in [tool.name for tool in (await mcp.list_tools()).tools]
        made = await mcp.call_tool("generate_image", CAT, progress_callback=tell)
        edited = await mcp.call_tool("edit_image", {**CAT, "image": file.as_uri(), "strength": 0.5})
        refused = await mcp.call_tool("edit_image", {**CAT, "image": "/nowhere/x.png"})
        wrong = await mcp.call_tool("generate_image", {"promt": "a cat"})
    assert shown(made) == shown(edited) == (64, 64)
    assert made.structured_content["images"][0]["url"].startswith(server.url)
    assert any(message.endswith("sampling 2/2") for message in told)
    assert (refused.is_error, wrong.is_error) == (True, True)
    assert "x.png cannot be read: No such file" in words(refused)
    assert "promt: unknown argument" in words(wrong)


async def test_a_cancelled_call_cancels_the_job(server: ServerProcess) -> None:
    """Through both: the client, this program, the server."""
    async with client("--url", f"{server.url}/v1") as mcp:
        begun = asyncio.Event()

        async def tell(progress: float, total: float | None, message: str | None) -> None:
            begun.set()

        long = {**CAT, "steps": 150, "size": "256x256"}
        call = asyncio.create_task(mcp.call_tool("generate_image", long, progress_callback=tell))
        await asyncio.wait_for(begun.wait(), DEADLINE)
        call.cancel()
        job = (await mcp.call_tool("job_status", {})).structured_content["jobs"][0]["job_id"]
        ended = await mcp.call_tool("job_status", {"job_id": job, "wait_seconds": DEADLINE})
    assert ended.structured_content["status"] == "cancelled"


async def test_one_of_its_own(model_dir: Path, tmp_path: Path) -> None:
    """Without an address a server runs inside it; its pictures have addresses, and are kept.

    A second one beside it has no state folder, and works.
    """
    flags = ("--model", "tiny-random", "--models-dir", str(model_dir), "--threads", "1")
    state = ("--state-dir", str(tmp_path))
    async with client(*flags, *state) as first, client(*flags, *state) as second:
        made = await first.call_tool("generate_image", CAT)
        assert shown(made) == (64, 64)
        assert (await second.call_tool("job_status", {})).structured_content == {"jobs": []}
    name = made.structured_content["images"][0]["url"].rsplit("/", 1)[1]
    assert (tmp_path / "pictures" / name).is_file()


def test_a_server_that_is_not_there() -> None:
    ended = run("--url", "http://127.0.0.1:9")
    assert ended.returncode == 1
    assert ended.stderr.startswith("gguf-imagegen: no server answers at http://127.0.0.1:9/mcp")


async def test_the_key_is_that_of_the_environment(running: RunningApp) -> None:
    async with running(engine=QuickEngine, api_key=("right",)) as app:
        ended = await asyncio.to_thread(run, "--url", app.url, GGUF_IMAGEGEN_API_KEY="wrong")
        assert ended.returncode == 1
        assert "wants another key: set GGUF_IMAGEGEN_API_KEY" in ended.stderr
        async with client("--url", app.url, GGUF_IMAGEGEN_API_KEY="right") as mcp:
            assert not (await mcp.call_tool("generate_image", CAT)).is_error


def test_without_the_extra() -> None:
    """The line that installs it, and no trace."""
    code = (
        "import sys; sys.modules['mcp'] = None; sys.argv[1:] = ['mcp'];"
        " from gguf_imagegen.commands.cli import main; main()"
    )
    ended = run(code=code)
    assert ended.returncode == 1
    assert ended.stderr == (
        "gguf-imagegen: MCP needs a library that is not installed:"
        " run pip install 'gguf-imagegen[mcp]' and start again\n"
    )


def test_only_pictures_are_read(tmp_path: Path) -> None:
    """A model may be talked into asking for any file; what is no picture does not leave this machine."""
    secret = tmp_path / "id_rsa"
    secret.write_text("secret")
    with pytest.raises(InvalidImage, match="not a PNG, JPEG"):
        with_files({"image": [str(secret)]}, MANY)
    with pytest.raises(InvalidImage, match="cannot be read"):
        with_files({"mask": str(tmp_path / "none.png")}, MANY)


def test_what_is_no_path_stays(tmp_path: Path) -> None:
    """Base64 of a JPEG begins with a slash; a prompt may, too."""
    file = tmp_path / "a.png"
    file.write_bytes(png(noise(64, 64)))
    given: dict[str, Any] = {"image": "/9j/4AAQSkZJRgABAQ", "mask": "job_x", "prompt": str(file)}
    assert with_files(given, MANY) == given
    sent = with_files({"image": str(file)}, MANY)["image"]
    assert base64.b64decode(sent.partition(",")[2]) == file.read_bytes()
