"""scripts/client.py, run as a user runs it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.api.client import noise, png
from tests.conftest import DEADLINE, ServerProcess

SCRIPT = Path(__file__).parents[1] / "scripts" / "client.py"
SMALL = ("--prompt", "a cat", "--size", "64x64", "--steps", "4", "--seed", "5")


def client(folder: Path, *args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **(env or {})},
    )


def test_one_picture(server: ServerProcess, tmp_path: Path) -> None:
    """The file has the size and the format of its name; the seed is told."""
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")):
        ran = client(tmp_path, "--url", server.url, *SMALL, "--output", name)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout == f"{name}  seed 5\n"
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == (kind, (64, 64))


@pytest.mark.parametrize("stream", [(), ("--stream",)])
def test_several_pictures_are_numbered(
    server: ServerProcess, tmp_path: Path, stream: tuple[str, ...]
) -> None:
    """--n 3 --output name.png writes name_0.png, name_1.png and name_2.png."""
    ran = client(tmp_path, "--url", f"{server.url}/v1/", *SMALL, "--n", "3", "--output", "name.png", *stream)
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["name_0.png", "name_1.png", "name_2.png"]
    assert ran.stdout.splitlines() == [f"name_{i}.png  seed {5 + i}" for i in range(3)]
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


def test_stream_shows_every_step(server: ServerProcess, tmp_path: Path) -> None:
    """--stream says how far each step is, and gives the same file as waiting does."""
    ran = client(tmp_path, "--url", server.url, *SMALL, "--output", "streamed.png", "--stream")
    assert ran.returncode == 0, ran.stderr
    steps = re.findall(r"^picture 0: step (\d)/4, \d+ %, sampling$", ran.stderr, re.M)
    assert [step for step in steps if step != "0"] == ["1", "2", "3", "4"]
    assert "picture 0: step 4/4, 100 %, done" in ran.stderr
    client(tmp_path, "--url", server.url, *SMALL, "--output", "waited.png")
    assert (tmp_path / "streamed.png").read_bytes() == (tmp_path / "waited.png").read_bytes()


def test_edit(server: ServerProcess, tmp_path: Path) -> None:
    """--image, --mask and --strength edit a picture."""
    (tmp_path / "house.png").write_bytes(png(noise(64, 64)))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    options = ("--image", "house.png", "--mask", "mask.png", "--strength", "0.6", "--output", "winter.png")
    ran = client(tmp_path, "--url", server.url, *SMALL, *options)
    assert ran.returncode == 0, ran.stderr
    with Image.open(tmp_path / "winter.png") as image:
        after, before = np.asarray(image.convert("RGB")), np.asarray(noise(64, 64))
    assert np.array_equal(after[:, 32:], before[:, 32:])
    assert not np.array_equal(after[:, :32], before[:, :32])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--size", "9x99"), r"size: 9x99 is too narrow.* \(400\)"),
        (("--model", "no-such"), r"there is no model 'no-such'.* \(404\)"),
        (("--sampler", "eular_a", "--stream"), r".*did you mean 'euler_a'.* \(400\)"),
        (("--output", "a.gif"), r"--output: a.gif must end in .png, .jpg"),
        (("--output", "no/a.png"), r"no/a.png: cannot be written: No such file"),
        (("--image", "none.png"), r"none.png: cannot be read: No such file"),
    ],
)
def test_errors_are_one_line(
    server: ServerProcess, tmp_path: Path, args: tuple[str, ...], words: str
) -> None:
    """What is wrong is said in the server's words, without a traceback."""
    ran = client(tmp_path, "--url", server.url, *SMALL, *args)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(rf"client\.py: {words}.*\n", ran.stderr), ran.stderr


def test_no_server(tmp_path: Path) -> None:
    """A server that is not there is said to be so."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        ran = client(tmp_path, "--url", f"http://127.0.0.1:{port}", *SMALL)
    assert ran.returncode == 1
    assert re.fullmatch(r"client\.py: http://127\.0\.0\.1:\d+ cannot be reached: .*refused.*\n", ran.stderr)


def test_key(model_dir: Path, tmp_path: Path) -> None:
    """The key comes from --key or the environment; without it the server's words are shown."""
    process = ServerProcess(model_dir, "--grace", "1", env={"GGUF_IMAGEGEN_API_KEY": "secret-key"})
    try:
        args = ("--url", process.url, *SMALL)
        refused = client(tmp_path, *args)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "no key" in refused.stderr
        assert client(tmp_path, *args, "--key", "secret-key").returncode == 0
        assert client(tmp_path, *args, env={"GGUF_IMAGEGEN_API_KEY": "secret-key"}).returncode == 0
    finally:
        process.stop()
