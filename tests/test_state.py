"""The state folder, by real servers: pictures outlive them, one server has it, a bad disk stops nobody."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEADLINE, ServerProcess

Serve = Callable[..., ServerProcess]
SMALL = {"prompt": "a cat", "size": "64x64", "steps": 1, "seed": 5, "response_format": "url"}


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        data: bytes = answer.read()
    return data


def make(server: ServerProcess, **fields: Any) -> dict[str, Any]:
    """A picture's answer."""
    body = json.dumps({**SMALL, **fields}).encode()
    request = urllib.request.Request(
        f"{server.url}/v1/images/generations", body, {"Content-Type": "application/json"}
    )
    answer: dict[str, Any] = json.loads(read(request))  # type: ignore[arg-type]
    return answer


def path_of(answer: dict[str, Any], server: ServerProcess) -> str:
    url: str = answer["data"][0]["url"]
    return url.removeprefix(server.url)


def test_pictures_outlive_the_server(serve: Serve, tmp_path: Path) -> None:
    """After an orderly end and after SIGKILL: the same bytes at the same address, and in the gallery."""
    folder = tmp_path / "state"
    first = serve("--state-dir", str(folder))
    kept = {path: read(first.url + path) for path in [path_of(make(first), first)]}
    assert first.stop() == 0
    second = serve("--state-dir", str(folder))
    path = path_of(make(second, seed=6), second)
    kept[path] = read(second.url + path)
    second.kill()
    third = serve("--state-dir", str(folder))
    assert {path: read(third.url + path) for path in kept} == kept
    listed = json.loads(read(f"{third.url}/v1/images"))["data"]
    assert [item["url"].removeprefix(third.url) for item in listed] == list(reversed(kept))
    assert [item["parameters"]["Seed"] for item in listed] == ["6", "5"]
    request = urllib.request.Request(third.url + path, method="DELETE")
    assert json.loads(read(request))["deleted"]  # type: ignore[arg-type]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        read(third.url + path)


def test_everything_is_the_owners(serve: Serve, tmp_path: Path) -> None:
    """Nobody else reads the state folder or what is in it."""
    folder = tmp_path / "state"
    make(serve("--state-dir", str(folder)))
    assert folder.stat().st_mode & 0o077 == 0
    pictures = list((folder / "pictures").iterdir())
    assert len(pictures) == 1
    assert pictures[0].stat().st_mode & 0o077 == 0


def test_an_ephemeral_server_keeps_nothing(serve: Serve, tmp_path: Path) -> None:
    """Not even the folder is made; the picture can be read while the server runs."""
    server = serve("--ephemeral", "--state-dir", str(tmp_path / "state"), env={"TMPDIR": str(tmp_path)})
    assert read(server.url + path_of(make(server), server))
    assert server.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_the_output_folder_is_used_instead(serve: Serve, tmp_path: Path) -> None:
    """With --output-dir no second copy is kept, and no limit holds there."""
    flags = ("--output-dir", str(tmp_path / "mine"), "--keep-pictures", "none", "--job-ttl", "1")
    server = serve("--state-dir", str(tmp_path / "state"), *flags)
    make(server)
    assert server.stop() == 0
    again = serve("--state-dir", str(tmp_path / "state"), *flags)
    assert len(json.loads(read(f"{again.url}/v1/images"))["data"]) == 1
    assert not (tmp_path / "state" / "pictures").exists()


def test_two_servers_do_not_share_a_folder(serve: Serve, model_dir: Path, tmp_path: Path) -> None:
    """The second one ends with words that say what to do; the lock of a killed one is no lock."""
    flags = ("--state-dir", str(tmp_path))
    first = serve(*flags)
    command = [
        sys.executable, "-m", "gguf_imagegen", "serve", "--port", "0", "--models-dir", str(model_dir), *flags,
    ]  # fmt: skip
    second = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)
    assert second.returncode == 1
    assert second.stdout == ""
    assert f"another server (process {first.process.pid}) uses the state folder" in second.stderr
    assert "--state-dir" in second.stderr
    assert "--ephemeral" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    first.kill()
    assert make(serve(*flags))["data"]


def test_a_state_folder_that_cannot_be(serve: Serve, tmp_path: Path) -> None:
    """With a file in its place the server runs, makes pictures, and the log says what is lost."""
    (tmp_path / "file").write_text("in the way")
    server = serve("--state-dir", str(tmp_path / "file" / "state"))
    server.wait_until_ready()
    assert read(server.url + path_of(make(server), server))
    assert "cannot write to the state folder (Not a directory)" in server.log()


def test_a_full_disk_loses_no_picture(serve: Serve, tmp_path: Path) -> None:
    """The picture is delivered from memory, with a warning."""
    server = serve("--state-dir", str(tmp_path))
    make(server)
    (tmp_path / "pictures").rename(tmp_path / "before")
    (tmp_path / "pictures").write_text("no folder")
    answer = make(server)
    assert any("could not be written" in warning for warning in answer["warnings"])
    assert read(server.url + path_of(answer, server))
    assert len(list((tmp_path / "before").iterdir())) == 1
