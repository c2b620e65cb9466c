"""deploy/litellm.yaml: LiteLLM's own proxy serves our pictures with it. With --all, for it is large."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import openai
import pytest

from tests.api.client import noise, picture, png
from tests.api.recipes import write_catalog
from tests.conftest import DEADLINE, ServerProcess

ROOT = Path(__file__).parents[2]
LITELLM = ROOT / "build" / "litellm" / "bin" / "litellm"
"""Put there by tests/clients/install --all."""
KEY = "sk-of-the-tests"


@pytest.fixture(scope="module")
def proxy(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("litellm")
    server = ServerProcess(model_dir, "--catalog", str(write_catalog(folder)))
    text = (ROOT / "deploy" / "litellm.yaml").read_text(encoding="utf-8")
    config = folder / "litellm.yaml"
    config.write_text(text.replace("http://127.0.0.1:8080", server.url).replace("glyph-128", "tiny-random"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    log = folder / "litellm.log"
    with log.open("wb") as written:
        process = subprocess.Popen(
            [LITELLM, "--config", config, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, "LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(f"http://127.0.0.1:{port}/health/liveliness", process, log)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0)
    finally:
        process.kill()
        process.wait(DEADLINE)
        server.stop()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers; its imports alone take half a minute, and more on a busy machine."""
    ends = time.monotonic() + 5 * DEADLINE
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    raise AssertionError(f"LiteLLM does not answer:\n{log.read_text(errors='replace')[-2000:]}")


def test_generates(proxy: openai.OpenAI) -> None:
    """As clients ask without asking for a size, and several of a size that the model cannot draw."""
    made = proxy.images.generate(model="local-pictures", prompt="a red apple")
    assert made.data is not None
    assert picture(base64.b64decode(made.data[0].b64_json or "")).size == (128, 128)
    made = proxy.images.generate(model="local-pictures", prompt="a red apple", n=2, size="1024x1024")
    assert [picture(each.b64_json or "").size for each in made.data or ()] == [(1024, 1024)] * 2


def test_edits(proxy: openai.OpenAI) -> None:
    image = ("cat.png", png(noise(128, 128)), "image/png")
    made = proxy.images.edit(model="local-pictures", image=image, prompt="a dog")
    assert made.data is not None
    picture(made.data[0].b64_json or "")


def test_errors_are_told(proxy: openai.OpenAI) -> None:
    """Our sentence reaches the client."""
    with pytest.raises(openai.BadRequestError, match="size"):
        proxy.images.generate(model="local-pictures", prompt="a", size="nonsense")
