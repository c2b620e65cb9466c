"""A program that shares the card is asked to make room; whatever it says, the load goes on."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from gguf_imagegen.machine.memory import Available
from gguf_imagegen.pool.neighbour import Neighbour
from gguf_imagegen.vocabulary.engine import LoadSpec
from gguf_imagegen.vocabulary.errors import InvalidRequest
from gguf_imagegen.vocabulary.events import EngineEvent
from tests.api.client import GENERATIONS, SMALL, eventually
from tests.conftest import RunningApp
from tests.endpoints import Call, endpoint, never
from tests.fake_engines import QuickEngine
from tests.pool.test_lane import PLENTY, Machine, on

pytestmark = pytest.mark.posix

OLLAMA = {"model": "qwen3", "keep_alive": 0}


def command(code: str, *words: str) -> str:
    return shlex.join([sys.executable, "-c", code, *words])


async def test_it_is_asked_before_each_load(running: RunningApp) -> None:
    """With the body that the setting names, before the engine begins; not for a model that is there."""
    order: list[str] = []

    async def answer(call: Call) -> web.StreamResponse:
        order.append(f"asked {call.path}")
        return web.json_response({"done_reason": "unload"})

    class Noted(QuickEngine):
        async def load(self, model: LoadSpec) -> AsyncIterator[EngineEvent]:
            order.append("loaded")
            async for event in super().load(model):
                yield event

    async with endpoint(answer) as ollama:
        wish = f"{ollama.url}/api/generate {json.dumps(OLLAMA)}"
        async with running(engine=Noted, before_load=wish) as app:
            for _ in range(2):
                assert (await app.post(GENERATIONS, **SMALL))[0] == 200
    assert order == ["asked /api/generate", "loaded"]
    assert json.loads(ollama.calls[0].body) == OLLAMA


async def test_a_command_is_run_without_a_shell(tmp_path: Path) -> None:
    """Its words are words, whatever stands in them."""
    word, file = "$(x) ; `y` 'z'", tmp_path / "told"
    neighbour = Neighbour(command("import sys; open(sys.argv[1], 'w').write(sys.argv[2])", str(file), word))
    await neighbour.ask()
    assert file.read_text() == word
    assert neighbour.leaving


@pytest.mark.parametrize("status", [0, 302, 404, 500])
async def test_a_refusal_is_a_warning(
    running: RunningApp, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Nobody there, redirects, faults: the picture is made, and the log has no key of the address."""

    async def answer(call: Call) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": "/elsewhere"})

    async with endpoint(answer) as there:
        url = there.url if status else "http://127.0.0.1:1"
        secret = url.replace("//", "//me:sesame@") + "/unload?key=sesame"
        async with running(engine=QuickEngine, before_load=secret) as app:
            assert (await app.post(GENERATIONS, **SMALL))[0] == 200
    (line,) = [record.getMessage() for record in caplog.records if "before-load" in record.getMessage()]
    assert line.startswith(f"--before-load: {url} did not make room: ")
    assert str(status or "cannot connect") in line
    assert "sesame" not in caplog.text
    assert len(there.calls) == bool(status)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise SystemExit(3)", "exit code 3"),
        ("import time; time.sleep(100)", "not done within 0.5 s"),
        (None, "No such file or directory"),
    ],
)
async def test_a_command_that_fails_is_a_warning(
    caplog: pytest.LogCaptureFixture, code: str | None, why: str
) -> None:
    """Its end is waited for, but not for ever."""
    neighbour = Neighbour(command(code) if code else "/no/such/program --now", patience=0.5)
    await neighbour.ask()
    assert why in caplog.text
    assert not neighbour.leaving


async def test_an_answer_is_not_waited_for_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """As for a command."""
    async with endpoint(never) as there:
        await Neighbour(there.url, patience=0.2).ask()
    assert "no answer within 0.2 s" in caplog.text


async def test_memory_that_becomes_free_a_moment_later_counts(model_dir: Path, tmp_path: Path) -> None:
    """Ollama answers before it unloads: what does not fit yet is not refused at once."""

    class Leaving(Machine):
        looks = 0

        def available(self) -> Available:
            self.looks += 1
            self.free = PLENTY if self.looks > 3 else 10_000_000
            return super().available()

    async with (
        endpoint() as there,
        on(Leaving(0), model_dir, tmp_path, before_load=there.url) as home,
    ):
        await home.load("a")
        assert home.loaded == ["a"]


@pytest.mark.parametrize("wish", ["", "  ", "'", "http://127.0.0.1:1/x {not json"])
def test_what_is_neither_is_refused_at_the_start(wish: str) -> None:
    """With the name of the setting."""
    with pytest.raises(InvalidRequest, match=r"^before_load: "):
        Neighbour(wish)


async def test_a_waiting_question_does_not_hold_up_a_cancel(running: RunningApp) -> None:
    """Who leaves while the neighbour thinks is gone at once."""
    async with endpoint(never) as there, running(engine=QuickEngine, before_load=there.url) as app:
        await there.came.wait()
        assert (await app.post("/v1/models/tiny-random/unload"))[0] == 202

        async def over() -> bool:
            return app.service.pool.loading is None

        await eventually("the load is over", over)
