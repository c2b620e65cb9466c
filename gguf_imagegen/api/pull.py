"""Models come and go over HTTP: a pull that everybody may follow and end, and the removal of files.

Pulls wait for one another, because they share the line. A pull goes on when its client leaves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from gguf_imagegen.api import answers
from gguf_imagegen.api.body import read_body
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, EVENTS, MODEL, READING, Param, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.streams.frames import error_frame, frame
from gguf_imagegen.api.streams.writing import Silence, send
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.kept import keep
from gguf_imagegen.catalog.store import Removal, Store
from gguf_imagegen.download.progress import Downloading, FileReady, Planned, PullEvent, Rewriting, Verifying
from gguf_imagegen.download.pull import Pull
from gguf_imagegen.download.targets import to_pull, to_remove
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    ImagegenError,
    InsufficientMemory,
    InternalError,
    InvalidRequest,
    ModelBusy,
    ModelNotDownloaded,
    ModelNotFound,
    PullNotFound,
    UnsupportedOperation,
)

log = logging.getLogger(__name__)
END_TIMEOUT = 30.0
"""Seconds in which a cancelled pull has ended: the hub's time-outs are shorter."""

FILES = Param(
    "files", "query", {"type": "boolean"}, "delete the files instead; 409 while the model is in use"
)

Status = Literal["waiting", "running", "succeeded", "failed", "cancelled"]


class PullRequest(BaseModel):
    model: str = Field(min_length=1, max_length=500)
    stream: bool = True


class Running:
    """One pull and the newest that it told of each file; `number` counts what it told."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.status: Status = "waiting"
        self.error: ImagegenError | None = None
        self.number = 0
        self._sizes: dict[str, int] = {}
        self._latest: dict[str, tuple[int, PullEvent]] = {}
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return self.status not in ("waiting", "running")

    def publish(self, event: PullEvent) -> None:
        if isinstance(event, Planned):
            self._sizes = dict(event.files)
        file = "" if isinstance(event, Planned) else event.file
        self._latest[file] = (self.number + 1, event)
        self.wake()

    def wake(self, status: Status | None = None, error: ImagegenError | None = None) -> None:
        """Tell all who follow; with a status, that it has changed."""
        self.number += 1
        if status is not None:
            self.status, self.error = status, error
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def since(self, number: int) -> list[PullEvent]:
        """What was told after this number, oldest first, of each file only the newest."""
        return [event for at, event in sorted(self._latest.values(), key=lambda one: one[0]) if at > number]

    async def more_than(self, number: int, timeout: float) -> bool:
        """Wait until there is something after this number; False if `timeout` seconds passed first."""
        if self.number > number or self.ended:
            return True
        try:
            await asyncio.wait_for(self._changed.wait(), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def wait(self) -> None:
        while not self.ended:
            await self._changed.wait()

    @property
    def total(self) -> int:
        return sum(self._sizes.values())

    @property
    def done(self) -> int:
        """Bytes of all files that are here."""
        events = {file: event for file, (_, event) in self._latest.items()}
        return sum(
            min(event.done, size)
            if isinstance(event := events.get(file), Downloading)
            else size * (event is not None)
            for file, size in self._sizes.items()
        )

    def view(self) -> dict[str, Any]:
        files = [_view(event) for _, event in self._latest.values() if not isinstance(event, Planned)]
        return {
            "object": "model.pull",
            "model": self.entry.name,
            "status": self.status,
            "done": self.done,
            "total": self.total,
            "files": files,
            **(self.error.body() if self.error else {"error": None}),
        }


class Pulls:
    """The pulls of this server by the model's name; `pulled` is told of each model that has come."""

    def __init__(self, store: Store, pulled: Callable[[Entry], None]) -> None:
        self.store = store
        self._pulled = pulled
        self._turn = asyncio.Lock()
        self._runs: dict[str, tuple[Running, Pull, asyncio.Task[None]]] = {}

    def start(self, entry: Entry) -> Running:
        """The pull of this model that goes on, else a new one."""
        found = self._runs.get(entry.name)
        if found is not None and not found[0].ended:
            return found[0]
        running, loop = Running(entry), asyncio.get_running_loop()
        pull = Pull(self.store, entry.sources.values(), lambda event: _call(loop, running.publish, event))
        task = asyncio.create_task(self._run(running, pull))
        self._runs[entry.name] = (running, pull, task)
        return running

    async def _run(self, running: Running, pull: Pull) -> None:
        try:
            async with self._turn:
                running.wake("running")
                await asyncio.to_thread(pull.run)
            self._pulled(running.entry)
            running.wake("succeeded")
        except Cancelled as exc:
            running.wake("cancelled", exc)
        except ImagegenError as exc:
            running.wake("failed", exc)
        except Exception:  # the edge of the pull: the log has the trace
            log.exception("internal error in the pull of %s", running.entry.name)
            running.wake("failed", InternalError("internal error; the server's log has the details"))

    def named(self, name: str) -> list[Running]:
        """The pulls of ID (in every quantisation) or ID:QUANT, newest last."""
        return [running for running, _, _ in self._runs.values() if _means(name, running.entry)]

    def fault(self, name: str) -> object:
        """Why the last pull failed, as an error object; None where none did or another one goes on."""
        pulls = self.named(name)
        if any(not pull.ended for pull in pulls):
            return None
        failed = (pull.error for pull in pulls if pull.status == "failed" and pull.error is not None)
        return next((error.body()["error"] for error in failed), None)

    async def cancel(self, running: Running) -> None:
        """End a pull, and wait until it has ended."""
        _, pull, task = self._runs[running.entry.name]
        pull.cancel()
        if running.status == "waiting":
            task.cancel()
            running.wake("cancelled", Cancelled("the pull was cancelled before it began"))
        await asyncio.wait_for(running.wait(), END_TIMEOUT)

    async def close(self) -> None:
        going = [running for running, _, _ in self._runs.values() if not running.ended]
        await asyncio.gather(*map(self.cancel, going), return_exceptions=True)


PULLS = web.AppKey("pulls", Pulls)


@endpoint(
    None,
    request=PullRequest,
    errors=(*READING, *ADMIN, ModelNotFound, UnsupportedOperation, InsufficientMemory),
    also={202: answers.PullObject},
    media=(EVENTS,),
    events="Events `progress`, `verifying`, then `done` or `error`; comments as heartbeats.",
    example={"model": "sd-turbo", "stream": False},
)
@admins_only
async def pull_model(request: web.Request) -> web.StreamResponse:
    """POST /v1/models/pull: start a pull or follow the one that goes on, streamed or not."""
    try:
        asked = PullRequest.model_validate(await read_body(request))
    except ValidationError as exc:
        fault = exc.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(f"{field}: {fault['msg']}", param=field) from None
    service = request.app[SERVICE]
    target = await asyncio.to_thread(to_pull, service.catalog, asked.model, service.settings)
    if target.new:
        await asyncio.to_thread(keep, service.settings.models_dir, target.new)
        service.catalog.learn(target.new)
    running = request.app[PULLS].start(target.entry)
    return (
        await send(request, partial(_frames, running))
        if asked.stream
        else reply(answers.PullObject, running.view(), status=202)
    )


@endpoint(answers.PullObject, errors=(ModelNotFound, PullNotFound))
async def get_pull(request: web.Request) -> web.Response:
    """GET /v1/models/pull/{id}: how far it is, or how it ended."""
    return reply(answers.PullObject, _named(request)[-1].view())


@endpoint(answers.PullObject, errors=(ModelNotFound, PullNotFound, *ADMIN))
@admins_only
async def cancel_pull(request: web.Request) -> web.Response:
    """DELETE /v1/models/pull/{id}: end it; what has arrived stays for the next pull."""
    pulls = _named(request)
    for running in pulls:
        if not running.ended:
            await request.app[PULLS].cancel(running)
    return reply(answers.PullObject, pulls[-1].view())


@endpoint(answers.ModelDeleted, errors=(InvalidRequest, *MODEL, ModelBusy, *ADMIN), params=(FILES,))
@admins_only
async def remove_model(request: web.Request) -> web.Response:
    """DELETE /v1/models/{id}: unload it; with `files=true` delete the files that no other model uses.

    Xinference's clients end a model so, and mean its memory: what took hours to pull goes only when told to.
    """
    app, name = request.app, request.match_info["id"]
    entries, others = await asyncio.to_thread(to_remove, app[SERVICE].catalog, name)
    removal = Removal((), (), 0)
    if _wants_files_deleted(request):
        _refuse_in_use(app, entries)
        removal = await asyncio.to_thread(app[PULLS].store.remove, entries, others)
        if not removal.removed:
            raise ModelNotDownloaded(f"model {name!r} has no files of its own on this machine", param="model")
    else:
        for entry in entries:
            await app[SERVICE].scheduler.unload(entry)
    deleted = bool(removal.removed)
    return reply(answers.ModelDeleted, {"id": name, "object": "model", "deleted": deleted, **asdict(removal)})


async def end_pulls(app: web.Application) -> None:
    """Signal `on_shutdown`: streams of pulls end before the server waits for open answers."""
    await app[PULLS].close()


def _wants_files_deleted(request: web.Request) -> bool:
    said = request.query.get("files", "false").lower()
    if said not in ("true", "1", "false", "0"):
        raise InvalidRequest("files: must be true or false", param="files")
    return said in ("true", "1")


def _refuse_in_use(app: web.Application, entries: Iterable[Entry]) -> None:
    pool = app[SERVICE].pool
    for entry in entries:
        if pool.loads(entry) or pool.holds(entry):
            raise ModelBusy(
                f"model {entry.name!r} is loaded; POST /v1/models/{entry.id}/unload first", param="model"
            )
        if any(not running.ended for running in app[PULLS].named(entry.name)):
            raise ModelBusy(
                f"model {entry.name!r} is being pulled; DELETE /v1/models/pull/{entry.name} first",
                param="model",
            )


def _named(request: web.Request) -> list[Running]:
    name = request.match_info["id"]
    request.app[SERVICE].catalog.get(name)
    pulls = request.app[PULLS].named(name)
    if not pulls:
        raise PullNotFound(f"there was no pull of {name[:100]!r} since this server started", param="model")
    return sorted(pulls, key=lambda running: not running.ended)


async def _frames(running: Running, silence: Silence) -> AsyncGenerator[bytes, None]:
    """What the pull tells to its end; a client that leaves ends only its answer."""
    seen = 0
    while not (running.ended and running.number == seen):
        if not await running.more_than(seen, silence.left):
            yield b""
            continue
        events, seen = running.since(seen), running.number
        for event in events:
            yield _frame(running, event)
    yield _last_frame(running)


def _frame(running: Running, event: PullEvent) -> bytes:
    overall = {"overall": {"done": running.done, "total": running.total}}
    name = "verifying" if isinstance(event, Verifying) else "progress"
    return frame({"model": running.entry.name, **_view(event), **overall}, event=name)


def _last_frame(running: Running) -> bytes:
    return error_frame(running.error) if running.error else frame(running.view(), event="done")


def _view(event: PullEvent) -> dict[str, Any]:
    match event:
        case Planned(files=files):
            return {"status": "planned", "files": [{"file": file, "total": size} for file, size in files]}
        case Downloading():
            return {"status": "downloading", **asdict(event)}
        case Verifying():
            return {"status": "verifying", **asdict(event)}
        case Rewriting():
            return {"status": "rewriting", **asdict(event)}
        case FileReady():
            return {"status": "ready", **asdict(event)}


def _means(name: str, entry: Entry) -> bool:
    id, _, quant = name.partition(":")
    return id in (entry.id, *entry.aliases) and quant in ("", entry.quant)


def _call(loop: asyncio.AbstractEventLoop, act: Callable[[PullEvent], None], event: PullEvent) -> None:
    """From a thread into the loop; nobody listens any more once that is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(act, event)
