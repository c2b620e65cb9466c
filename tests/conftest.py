"""What all tests share: a tiny real model, a real server process on it, and servers made to measure."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
import hypothesis
import psutil
import pytest
from aiohttp import web

from gguf_imagegen.api.app import make_app
from gguf_imagegen.api.connections import Bounds, listen
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.catalog.default_model import choose_models
from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.engines.backend import Backend
from gguf_imagegen.engines.sdcpp.backend import SdCpp
from gguf_imagegen.jobs import state
from gguf_imagegen.jobs.scheduler import Scheduler
from gguf_imagegen.jobs.state import State
from gguf_imagegen.service import Service
from gguf_imagegen.settings import Settings
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.waits import USUAL, Waits
from tests.fake_engines import FakeBackend
from tests.hub import HubServer

DEADLINE = 60.0
LARGE = (
    "test_deaths.py",
    "test_docs_build.py",
    "test_firefox.py",
    "test_fresh_machine.py",
    "test_hundred.py",
    "test_litellm.py",
    "test_network.py",
    "test_rapidocr.py",
    "test_two_commands.py",
    "test_unet.py",
    "test_upgrade.py",
)
"""Modules that run with `--all` alone."""
LONG = (
    "test_kernels.py",
    "test_lanes.py",
    "test_repositories.py",
    "test_restart.py",
    "test_schemathesis.py",
    "test_set_restart.py",
    "test_state.py",
    "web",
)
"""Modules and folders with tests of many seconds, which begin before the others."""
POSIX = "\npytestmark = pytest.mark.posix\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--all` has the tests that check the same on many examples take all of them."""
    parser.addoption("--all", action="store_true", help="all examples, where the default run takes a part")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `--all` alone: what needs large libraries (tests/clients/install has them), Firefox, or minutes.

    Nor what Windows lacks: a module that says `posix` of itself may import it.
    """
    if collection_path.name in LARGE and not config.getoption("all"):
        return True
    foreign = sys.platform == "win32" and collection_path.suffix == ".py"
    return True if foreign and POSIX in collection_path.read_text(encoding="utf-8") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {item for item in items if sys.platform == "win32" and item.get_closest_marker("posix")}
    if not config.getoption("all"):
        left_out |= _further_examples(items)
    config.hook.pytest_deselected(items=list(left_out))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = long_first([item for item in items if item not in left_out], workers)


def long_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """What LONG names, spread over the workers of xdist, at the beginning of what each of them gets.

    Its `--dist worksteal` gives each worker an even share of the tests in their order; one that has done its
    own takes from the others', but never the test after the one that runs. Two long tests at the end of a
    share would keep one worker at work while all others wait.
    """
    if workers == 1:
        return items
    long = [item for item in items if _is_long(item)]
    others = iter([item for item in items if not _is_long(item)])
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        share = (len(items) - len(ordered)) // (workers - worker)
        first = long[worker::workers]
        ordered += [*first, *islice(others, max(0, share - len(first)))]
    return ordered


def _is_long(item: pytest.Item) -> bool:
    return not {item.path.name, item.path.parent.name}.isdisjoint(LONG)


def _further_examples(items: list[pytest.Item]) -> set[pytest.Item]:
    """`@pytest.mark.part(3)`: of a test's examples all but one in three."""
    seen: Counter[str] = Counter()
    further = set()
    for item in items:
        if marker := item.get_closest_marker("part"):
            name = item.nodeid.partition("[")[0]
            if seen[name] % marker.args[0]:
                further.add(item)
            seen[name] += 1
    return further


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C ends programs that tests start, even where a shell ignores it; examples have no deadline."""
    config.addinivalue_line("markers", "part(n): one in n of the examples, where --all does not want all")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("any machine", deadline=None)
    hypothesis.settings.load_profile("any machine")


def pytest_unconfigure() -> None:
    """Close what the engine's binding, whose structs some tests look at, opens and leaves open."""
    if binding := sys.modules.get("stable_diffusion_cpp._utils"):
        binding.outnull_file.close()
        binding.errnull_file.close()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the tiny random model in it."""
    folder = tmp_path_factory.mktemp("models")
    write_test_model(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _users_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test sees the state folder of whoever runs the tests, nor one of a server that they use.

    Threads of engines sleep while they wait: there are more of them than cores.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_WAIT_POLICY", "passive")
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


class ServerProcess:
    """`gguf-imagegen serve` as a user runs it, on a free port and with a new state folder."""

    def __init__(self, model_dir: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self._state = Path(tempfile.mkdtemp(dir=os.environ.get("XDG_STATE_HOME")))
        command = [
            sys.executable, "-m", "gguf_imagegen", "serve", "--port", "0", "--model", "tiny-random",
            "--models-dir", str(model_dir), "--threads", "1", "--state-dir", str(self._state), *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, env={**os.environ, "COLUMNS": "200", **(env or {})}
        )
        self._log = ""
        self.url = self._read_url()
        os.set_blocking(self._stderr, False)

    @property
    def _stderr(self) -> int:
        assert self.process.stderr is not None
        return self.process.stderr.fileno()

    def _read_url(self) -> str:
        while data := os.read(self._stderr, 1 << 16):
            self._log += data.decode()
            if match := re.search(r"(https?://\S+)/v1\n", self._log):
                return match[1]
        raise AssertionError(f"the server did not start: {self._log}")

    def log(self) -> str:
        """Everything written to stderr so far."""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._stderr, 1 << 16):
                self._log += data.decode()
        return self._log

    def worker(self) -> psutil.Process | None:
        """The engine's process, if there is one."""
        children = psutil.Process(self.process.pid).children()
        return next(
            (c for c in children if "gguf_imagegen.engines.sdcpp.worker" in " ".join(c.cmdline())), None
        )

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                answer = urllib.request.urlopen(f"{self.url}/health", timeout=5)
                with answer:
                    if json.load(answer)["loaded"]:
                        return
            time.sleep(0.02)
        raise AssertionError(f"not ready: {self.log()}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it without a word to it."""
        self.process.kill()
        self.process.wait(DEADLINE)
        assert self.process.stderr is not None
        self.process.stderr.close()
        shutil.rmtree(self._state)


@pytest.fixture(scope="session")
def server(model_dir: Path) -> Iterator[ServerProcess]:
    """One server process for all tests that leave it as they found it."""
    process = ServerProcess(model_dir, "--grace", "1")
    process.wait_until_ready()
    yield process
    process.stop()


@pytest.fixture(scope="session")
def own(model_dir: Path) -> Iterator[ServerProcess]:
    """A server for clients without manners, whose worker may be killed."""
    process = ServerProcess(model_dir, "--grace", "1")
    process.wait_until_ready()
    yield process
    assert process.stop() == 0


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server on the embedded model, with an empty models folder."""
    process = ServerProcess(tmp_path_factory.mktemp("empty"), "--model", "embedded", "--grace", "1")
    process.wait_until_ready()
    yield process
    process.stop()


@pytest.fixture
def serve(model_dir: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start server processes of one's own: `serve("--max-queue", "2")`."""
    started: list[ServerProcess] = []

    def start(*flags: str, env: dict[str, str] | None = None) -> ServerProcess:
        process = ServerProcess(model_dir, *flags, env=env)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.process.poll() is None:
            process.stop()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that HF_ENDPOINT points at, without any token."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


class App:
    """A server inside the test's own process, for a look behind the HTTP."""

    def __init__(self, url: str, app: web.Application, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.app = app
        self.session = session

    @property
    def service(self) -> Service:
        return self.app[SERVICE]

    @property
    def scheduler(self) -> Scheduler:
        return self.service.scheduler

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body) as answer:
            return answer.status, await answer.json()

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.json()


RunningApp = Callable[..., AbstractAsyncContextManager[App]]


@pytest.fixture
def running(model_dir: Path) -> RunningApp:
    """See `runner_of`."""
    return runner_of(model_dir)


def runner_of(model_dir: Path) -> RunningApp:
    """`async with running(max_queue=2) as app`, with `engine=` a maker of engines that misbehave.

    Or with a `backend=` of one's own, as `--backend` takes it; `reader=` makes an engine that reads text.
    Nothing is kept unless a `state_dir` is named, or `kept` is a state folder that was opened.
    """

    @contextlib.asynccontextmanager
    async def run(
        *,
        engine: Callable[[], Engine] | None = None,
        backend: Callable[[Settings], Backend] = SdCpp,
        reader: Callable[[], Engine] | None = None,
        bounds: Bounds | None = None,
        waits: Waits = USUAL,
        kept: State | None = None,
        **settings: Any,
    ) -> AsyncIterator[App]:
        values = {"models_dir": model_dir, "model": "tiny-random", "threads": 1, **settings}
        chosen = Settings(**values)
        if kept is None and "state_dir" in settings:
            with state.folder(chosen) as opened:
                makers: dict[str, Any] = {"engine": engine, "backend": backend, "reader": reader}
                async with run(**makers, bounds=bounds, waits=waits, kept=opened, **settings) as app:
                    yield app
            return
        catalog, default = choose_models(chosen)
        found = FakeBackend(chosen, engine) if engine else backend(chosen)
        application = make_app(chosen, catalog, default, found, kept, make_reader=reader, waits=waits)
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
        await runner.setup()
        assert runner.server is not None
        listening = await listen(
            runner.server, "127.0.0.1", 0, bounds or Bounds(), root_path=chosen.root_path
        )
        try:
            async with aiohttp.ClientSession() as session:
                yield App(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", application, session)
        finally:
            listening.close()
            await runner.cleanup()

    return run
