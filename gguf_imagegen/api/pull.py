"""Models come and go over HTTP: pulls, which wait for one another as they share the line, and removal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial

from aiohttp import web
from pydantic import BaseModel, Field

from gguf_imagegen.api import answers
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.errands import Errands, News, Running, asked_for, followed, in_loop
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, EVENTS, MODEL, READING, Param, endpoint
from gguf_imagegen.api.reply import reply
from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.catalog.kept import keep
from gguf_imagegen.catalog.store import Removal, Store
from gguf_imagegen.download.progress import Downloading, FileReady, Planned, PullEvent, Rewriting, Verifying
from gguf_imagegen.download.pull import Pull
from gguf_imagegen.download.targets import to_pull, to_remove
from gguf_imagegen.vocabulary.errors import (
    InsufficientMemory,
    InvalidRequest,
    ModelBusy,
    ModelNotDownloaded,
    ModelNotFound,
    PullNotFound,
    UnsupportedOperation,
)

FILES = Param(
    "files", "query", {"type": "boolean"}, "delete the files instead; 409 while the model is in use"
)


class PullRequest(BaseModel):
    model: str = Field(min_length=1, max_length=500)
    stream: bool = True


class Pulls(Errands):
    """The pulls of this server by the model's name; `pulled` is told of each model that has come."""

    def __init__(self, store: Store, pulled: Callable[[Entry], None]) -> None:
        super().__init__("pull")
        self.store = store
        self._pulled = pulled

    def begin(self, entry: Entry) -> Running:
        """The pull of this model that goes on, else a new one."""
        running = Running("model.pull", entry.name)
        pull = Pull(self.store, entry.sources.values(), partial(in_loop(), publish, running))

        async def work() -> None:
            await asyncio.to_thread(pull.run)
            self._pulled(entry)

        return self.start(running, work, pull.cancel)

    def fault(self, name: str) -> object:
        """Why the last pull failed, as an error object; None where none did or another one goes on."""
        pulls = self.named(name)
        if any(not pull.ended for pull in pulls):
            return None
        failed = (pull.error for pull in pulls if pull.status == "failed" and pull.error is not None)
        return next((error.body()["error"] for error in failed), None)


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
    asked = await asked_for(request, PullRequest)
    service = request.app[SERVICE]
    target = await asyncio.to_thread(to_pull, service.catalog, asked.model, service.settings)
    if target.new:
        await asyncio.to_thread(keep, service.settings.models_dir, target.new)
        service.catalog.learn(target.new)
    running = request.app[PULLS].begin(target.entry)
    return await followed(request, running, answers.PullObject, stream=asked.stream)


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
        refuse_in_use(app, entries)
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


def refuse_in_use(app: web.Application, entries: Iterable[Entry]) -> None:
    """ModelBusy while the files of one of these are loaded or come."""
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
    id, quant = request.app[SERVICE].catalog.get(name).id, name.partition(":")[2]
    pulls = request.app[PULLS].named(f"{id}:{quant}" if quant else id)
    if not pulls:
        raise PullNotFound(f"there was no pull of {name[:100]!r} since this server started", param="model")
    return pulls


def publish(running: Running, event: PullEvent) -> None:
    """Tell an event of a pull in the words of clients."""
    match event:
        case Planned(files=files):
            planned = [{"file": file, "total": size} for file, size in files]
            running.plan(dict(files), {"status": "planned", "files": planned})
        case Downloading():
            running.publish(News(event.file, {"status": "downloading", **asdict(event)}, event.done))
        case Verifying():
            running.publish(News(event.file, {"status": "verifying", **asdict(event)}, name="verifying"))
        case Rewriting():
            running.publish(News(event.file, {"status": "rewriting", **asdict(event)}))
        case FileReady():
            running.publish(News(event.file, {"status": "ready", **asdict(event)}))
