"""Survival of the engine's process: crashed, killed, cancelled, fed with broken models, and shut down."""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gguf_imagegen.commands.testmodel import write_test_model
from gguf_imagegen.engines.process import EngineProcess
from gguf_imagegen.vocabulary.engine import Engine
from gguf_imagegen.vocabulary.waits import Waits
from tests.conftest import DEADLINE, RunningApp, ServerProcess
from tests.survival import (
    Answer,
    Client,
    Stream,
    client_of,
    client_of_mortal,
    crash,
    eventually,
    freeze,
    gone,
    reaped,
    worker_of,
)

pytestmark = pytest.mark.posix

LONG: dict[str, Any] = {"steps": 150, "size": "192x192"}
Serve = Callable[..., ServerProcess]


@pytest.fixture
async def client(own: ServerProcess) -> AsyncIterator[Client]:
    """A client of `own`, which must serve a normal request afterwards."""
    async with client_of(own) as client:
        yield client


def assert_crash(error: dict[str, Any]) -> None:
    assert error["code"] == "worker_crashed"
    assert error["type"] == "server_error"
    assert "SIGSEGV" in error["message"]


# -- crashed -------------------------------------------------------------------------------------------


async def test_crash_in_a_step_reaches_a_waiting_client(own: ServerProcess, client: Client) -> None:
    """A client that waits for JSON gets a 500 `worker_crashed` when the worker dies in a step."""
    before = (await client.make()).body["id"]
    waiting = asyncio.create_task(client.make(**LONG))
    job = await client.newest_job(but=before)

    async def sampling() -> bool:
        return bool((await client.job(job["id"]))["step"] >= 2)

    await eventually("sampling", sampling)
    crash(await worker_of(own))
    answer = await waiting
    assert answer.status == 500
    assert_crash(answer.body["error"])
    assert answer.headers["x-should-retry"] == "false"
    assert (await client.job(job["id"]))["status"] == "failed"


@pytest.mark.parametrize("dialect", ["llama-box", "openai", "both"])
async def test_crash_in_a_step_reaches_a_stream(own: ServerProcess, client: Client, dialect: str) -> None:
    """A stream of each dialect ends whole, with an `event: error` frame."""
    async with await client.stream(**LONG, stream_options={"dialect": dialect}) as stream:
        if dialect == "openai":
            await stream.until_comment("progress 2/")
        else:
            await stream.until_phase("sampling", step=2)
        crash(await worker_of(own))
        assert_crash(await stream.error())


async def test_crash_while_loading(own: ServerProcess, client: Client) -> None:
    """A worker that dies while it loads is an error of the request, and the next request loads anew."""
    old = await worker_of(own)
    await client.unload()
    async with await client.stream() as stream:
        crash(await freeze(own, but=old.pid))
        assert_crash(await stream.error())


async def test_kill_of_an_idle_worker_is_not_noticed(own: ServerProcess, client: Client) -> None:
    """When the worker died between two requests, the next one gets its picture from a new worker."""
    await client.make()
    worker = await worker_of(own)
    worker.kill()
    await reaped(worker)
    assert (await client.make()).status == 200


async def test_a_killed_worker_costs_its_job_an_attempt(own: ServerProcess, client: Client) -> None:
    """Killed from outside, in a step and while it loads: the job is begun again, and says so."""
    wanted = {**LONG, "n": 2, "seed": 3, "response_format": "url", "steps": 60}
    async with await client.stream(**wanted) as stream:
        await stream.until(lambda frame: frame.item.get("finish_reason") == "stop")
        await stream.until_phase("sampling", step=2)
        old = await worker_of(own)
        old.kill()
        (await freeze(own, but=old.pid)).kill()
        assert (await stream.end()).data == "[DONE]"
        ends = [frame.item for frame in stream.frames if frame.item.get("finish_reason") == "stop"]
        assert [(item["index"], item["seed"]) for item in ends] == [(0, 3), (1, 4)]
    job = await client.job(stream.job)
    words = [warning[-23:] for warning in job["warnings"]]
    assert words == ["Attempt 2 of 3 follows.", "Attempt 3 of 3 follows."]


async def test_two_crashes_in_a_row(own: ServerProcess, client: Client) -> None:
    """Two crashes one after the other are two errors, and no pause follows."""
    for _ in range(2):
        async with await client.stream(**LONG) as stream:
            await stream.until_phase("sampling", step=1)
            crash(await worker_of(own))
            assert_crash(await stream.error())


async def test_a_queued_job_outlives_the_crash_of_the_one_before(own: ServerProcess, client: Client) -> None:
    """A crash costs the running job only; the one behind it gets its picture."""
    async with await client.stream(**LONG) as stream:
        await stream.until_phase("sampling", step=1)
        behind = asyncio.create_task(client.make())
        await client.newest_job(but=stream.job)
        crash(await worker_of(own))
        assert_crash(await stream.error())
        assert (await behind).picture().size == (64, 64)


async def test_three_crashes_open_the_breaker_and_it_closes_again(running: RunningApp) -> None:
    """After three crashes no worker is started for a while, clients are told so, then all is well.

    Whoever waited before gets a picture.
    """
    async with running(threads=1, swap_after=0, waits=Waits(crash_pause=3.0)) as app:
        client = Client(app.url, app.session)
        streams = [await client.stream(**LONG) for _ in range(3)]
        waiting = [asyncio.create_task(client.make()) for _ in range(5)]
        for stream in streams:
            async with stream:
                await stream.until_phase("sampling", step=1)
                for child in psutil.Process().children():
                    if "gguf_imagegen.engines.sdcpp.worker" in " ".join(child.cmdline()):
                        crash(child)
                assert_crash(await stream.error())
        for _ in range(3):  # asking again does not make the pause longer
            refused = await client.make()
        assert (refused.status, refused.code) == (503, "engine_paused")
        assert "crashed again and again" in refused.message
        assert 1 <= int(refused.headers["Retry-After"]) <= 3
        assert f"try again in {refused.headers['Retry-After']} s" in refused.message
        assert app.service.pool.present is False
        assert [answer.status for answer in await asyncio.gather(*waiting)] == [200] * 5

        async def served() -> Answer | None:
            answer = await client.make()
            return answer if answer.status == 200 else None

        await eventually("the breaker closes", served)
        await client.still_serves()


# -- cancelled ----------------------------------------------------------------------------------------


async def hold(own: ServerProcess, client: Client, phase: str) -> Stream:
    """A stream whose job is held in this phase by a stopped worker."""
    old = None
    if phase == "loading":
        old = (await worker_of(own)).pid
        await client.unload()
    wanted = {
        "conditioning": {"prompt": "a" * 8000, **LONG},
        "sampling": LONG,
        "decoding": {"size": "256x256"},
    }
    stream = await client.stream(**wanted.get(phase, {}))
    if phase != "loading":
        await stream.until_phase(phase, step=1)
    await freeze(own, but=old)
    assert (await client.job(stream.job))["status"] == "running"
    return stream


@pytest.mark.parametrize("phase", ["loading", "conditioning", "sampling", "decoding"])
async def test_cancel_while_running(own: ServerProcess, client: Client, phase: str) -> None:
    """DELETE ends a running job in every phase: its stream says `cancelled`, its worker is gone."""
    async with await hold(own, client, phase) as stream:
        worker = await worker_of(own)
        assert (await client.cancel(stream.job))["status"] == "cancelled"
        assert (await stream.error())["code"] == "cancelled"
        await gone(worker)


async def test_cancel_while_queued(client: Client) -> None:
    """DELETE ends a queued job at once and leaves the running one alone."""
    async with await client.stream(steps=30) as first:
        await first.until_phase("sampling", step=1)
        async with await client.stream() as second:
            assert (await client.cancel(second.job))["status"] == "cancelled"
            assert (await second.error())["code"] == "cancelled"
        assert (await first.end()).data == "[DONE]"


async def test_cancel_twice_and_after_the_end(own: ServerProcess, client: Client) -> None:
    """Cancels at the same time, a cancel of a cancelled job and one of a finished job change nothing."""
    async with await hold(own, client, "sampling") as stream:
        both = await asyncio.gather(client.cancel(stream.job), client.cancel(stream.job))
        assert [job["status"] for job in both] == ["cancelled", "cancelled"]
        assert (await stream.error())["code"] == "cancelled"
        assert (await client.cancel(stream.job))["status"] == "cancelled"
    finished = (await client.make()).body["id"]
    worker = await worker_of(own)
    assert (await client.cancel(finished))["status"] == "succeeded"
    assert (await client.make()).status == 200
    assert (await worker_of(own)).pid == worker.pid


# -- leaving ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["loading", "sampling", "decoding"])
async def test_client_leaves_while_running(own: ServerProcess, client: Client, phase: str) -> None:
    """A streaming client that goes away takes its job and the job's worker with it."""
    async with await hold(own, client, phase) as stream:
        worker = await worker_of(own)
    assert (await client.has_status(stream.job, "cancelled"))["error"]["message"] == "the client left"
    await gone(worker)


async def test_client_leaves_the_queue(client: Client) -> None:
    """A client that leaves while it is queued costs nothing: the running job ends well."""
    async with await client.stream(steps=50) as first:
        await first.until_phase("sampling", step=1)
        async with await client.stream() as second:
            await second.until_comment("queued")
        await client.has_status(second.job, "cancelled")
        waiting = asyncio.create_task(client.make())
        third = await client.newest_job(but=second.job)
        waiting.cancel()
        await client.has_status(third["id"], "cancelled")
        assert (await first.end()).data == "[DONE]"


# -- broken models ------------------------------------------------------------------------------------


def corrupt(good: bytes) -> bytes:
    """The tensor count is absurd."""
    return good[:8] + b"\xff" * 8 + good[16:]


def incomplete(good: bytes) -> bytes:
    """A whole file with a name that the engine looks for in vain."""
    name = b"final_layer.linear.bias"
    assert name in good
    return good.replace(name, b"final_layer.linear.bixx")


def misshapen(good: bytes) -> bytes:
    """A whole file with a bias that is half as long as the engine wants it."""
    head = b"final_layer.linear.bias" + struct.pack("<I", 1)
    length = struct.pack("<Q", 64)
    assert head + length in good
    return good.replace(head + length, head + struct.pack("<Q", 32))


BROKEN: dict[str, tuple[Callable[[bytes], bytes | None], set[str]]] = {
    "corrupt": (corrupt, {"invalid_model_file"}),
    "truncated": (lambda good: good[: len(good) // 2], {"invalid_model_file"}),
    "cut in the header": (lambda good: good[:100], {"invalid_model_file"}),
    "empty": (lambda good: b"", {"invalid_model_file"}),
    "text": (lambda good: b"not a model\n" * 1000, {"invalid_model_file"}),
    "missing": (lambda good: None, {"model_not_downloaded"}),
    "incomplete": (incomplete, {"missing_component"}),
}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """A server with a models folder of its own, and its model file."""
    folder = tmp_path_factory.mktemp("fragile")
    path = write_test_model(folder)["model"]
    process = ServerProcess(folder, "--grace", "1", "--threads", "1")
    process.wait_until_ready()
    yield process, path
    assert process.stop() == 0


@pytest.mark.parametrize("kind", BROKEN)
async def test_a_broken_model_file(fragile: tuple[ServerProcess, Path], kind: str) -> None:
    """A model file that broke is a clear error, again for the next request; once mended it is served."""
    server, path = fragile
    good = path.read_bytes()
    breaking, codes = BROKEN[kind]
    async with client_of(server) as client:
        await client.unload()
        try:
            broken = breaking(good)
            path.unlink()
            if broken is not None:
                path.write_bytes(broken)
            for _ in range(2):
                answer = await client.make()
                assert answer.code in codes, answer.body
                assert "tiny-random" in answer.message
                assert str(path.parent) not in str(answer.body)
            live = await client.get("/livez")
            assert live.status == 200
        finally:
            path.write_bytes(good)
        assert (await client.send("POST", "/v1/models/tiny-random/load")).status == 202


@pytest.mark.parametrize("again", [False, True])
async def test_a_model_that_the_engine_refuses_is_not_tried_in_a_loop(
    running: RunningApp, tmp_path: Path, again: bool
) -> None:
    """A file that passes our checks but not the engine's is refused from memory for a while, then tried anew.

    Whoever mended it need not wait: loading by hand forgets the failure.
    """
    path = write_test_model(tmp_path)["model"]
    good = path.read_bytes()
    started: list[EngineProcess] = []

    def make_engine() -> Engine:
        started.append(EngineProcess())
        return started[-1]

    waits = Waits(failed_load=0.0 if again else DEADLINE)
    async with running(engine=make_engine, models_dir=tmp_path, threads=1, waits=waits) as app:
        client = Client(app.url, app.session)
        await client.still_serves()
        await client.unload()
        path.write_bytes(misshapen(good))
        before = len(started)
        for _ in range(3):
            answer = await client.make()
            assert (answer.status, answer.code) == (500, "model_load_failed")
            assert str(tmp_path) not in str(answer.body)
        async with await client.stream() as stream:
            assert (await stream.error())["code"] == "model_load_failed"
        assert len(started) == before + (4 if again else 1)
        path.write_bytes(good)
        if not again:
            assert (await client.make()).code == "model_load_failed"
            assert (await client.send("POST", "/v1/models/tiny-random/load")).status == 202
        await client.still_serves()


async def test_an_engine_that_cannot_be_started(running: RunningApp) -> None:
    """A preload in which no process can be started does not end the scheduler."""
    failures = iter([OSError(12, "Cannot allocate memory")])

    def make_engine() -> Engine:
        for failure in failures:
            raise failure
        return EngineProcess()

    async with running(engine=make_engine, threads=1) as app:

        async def failed() -> bool:
            return next(failures, None) is None

        await eventually("the preload has failed", failed)
        client = Client(app.url, app.session)
        await asyncio.wait_for(client.still_serves(), DEADLINE)


# -- the end of the server ----------------------------------------------------------------------------


async def test_sigterm_ends_every_stream_whole(serve: Serve) -> None:
    """At SIGTERM running and queued jobs end with an error frame, the exit code is 0, the worker is gone."""
    server = serve("--grace", "0.5", "--threads", "1")
    server.wait_until_ready()
    async with client_of_mortal(server) as client:
        running = await client.stream(**LONG)
        await running.until_phase("sampling", step=1)
        queued = [
            await client.stream(stream_options={"dialect": dialect})
            for dialect in ("llama-box", "openai", "both")
        ]
        waiting = asyncio.create_task(client.make())
        await client.newest_job(but=queued[-1].job)
        worker = await worker_of(server)
        server.process.send_signal(signal.SIGTERM)
        for stream in (running, *queued):
            error = await stream.error()
            assert error["code"] == "shutting_down"
        answer = await waiting
        assert (answer.status, answer.code, answer.headers["x-should-retry"]) == (
            503,
            "shutting_down",
            "true",
        )
        assert await asyncio.to_thread(server.process.wait, DEADLINE) == 0
        assert await asyncio.to_thread(server.stop) == 0
        await gone(worker)


async def test_sigterm_lets_jobs_finish_in_the_time_of_grace(serve: Serve) -> None:
    """Jobs that can end within the time of grace do: their streams end with [DONE], new ones get a 503."""
    server = serve("--grace", "30", "--threads", "1")
    server.wait_until_ready()
    async with client_of_mortal(server) as client:
        async with await client.stream(**{**LONG, "steps": 20}) as running, await client.stream() as queued:
            await running.until_phase("sampling", step=1)
            server.process.send_signal(signal.SIGTERM)

            async def refused() -> Answer | None:
                answer = await client.make()
                return answer if answer.status != 200 else None

            late = await eventually("new requests are refused", refused)
            assert (late.status, late.code) == (503, "shutting_down")
            assert int(late.headers["Retry-After"]) > 0
            assert (await running.end()).data == "[DONE]"
            assert (await queued.end()).data == "[DONE]"
        assert await asyncio.to_thread(server.process.wait, DEADLINE) == 0
        assert await asyncio.to_thread(server.stop) == 0


async def test_sigkill_of_the_server_takes_the_worker_along(serve: Serve) -> None:
    """A server that is killed leaves no worker behind, not even one that computes."""
    server = serve("--threads", "1")
    server.wait_until_ready()
    async with client_of_mortal(server) as client, await client.stream(**LONG) as stream:
        await stream.until_phase("sampling", step=1)
        worker = await worker_of(server)
        server.process.kill()
        await gone(worker)
        assert await asyncio.to_thread(server.stop) == -signal.SIGKILL
