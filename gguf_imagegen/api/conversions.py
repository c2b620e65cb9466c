"""Models in other types over HTTP: conversions that everybody may follow and an admin may begin and end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from aiohttp import web
from pydantic import BaseModel, Field

from gguf_imagegen.api import answers
from gguf_imagegen.api.callers import admins_only
from gguf_imagegen.api.errands import Errands, News, Running, asked_for, followed, in_loop
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import ADMIN, EVENTS, MODEL, READING, endpoint
from gguf_imagegen.api.pull import refuse_in_use
from gguf_imagegen.api.reply import reply
from gguf_imagegen.catalog.kept import keep
from gguf_imagegen.engines.conversion import OnProgress, convert, replacing, require_room, sweep
from gguf_imagegen.planning.conversion import FOLDER, Conversion, conversion, with_file
from gguf_imagegen.pool.comparison import Likeness, compared
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import (
    Cancelled,
    ConversionNotFound,
    DiskFull,
    InsufficientMemory,
    InvalidModelFile,
    ModelBusy,
    UnsupportedOperation,
)


class ConvertRequest(BaseModel):
    """`name` is that of the result; with `vae` the model's VAE is put into its file.

    With `check` a picture of the result is compared with the source's.
    """

    model: str = Field(min_length=1, max_length=500)
    type: str = Field(min_length=1, max_length=20)
    rules: str = Field("", max_length=4000)
    name: str = Field("", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$", max_length=200)
    vae: bool = False
    force: bool = False
    check: bool = True
    stream: bool = True


class Conversions(Errands):
    """The conversions of this server by the name of their result."""

    def __init__(self, service: Service) -> None:
        super().__init__("conversion")
        self._service = service
        self._wanted: dict[str, Conversion] = {}

    def begin(self, wanted: Conversion, *, check: bool) -> Running:
        """Convert, unless that goes on already; the result is known to the catalog, and kept."""
        going = [each for each in self.named(wanted.name) if not each.ended]
        if going and self._wanted[wanted.name] != wanted:
            raise ModelBusy(
                f"another conversion to {wanted.name!r} goes on; choose another name", param="name"
            )
        self._wanted[wanted.name] = wanted
        unknown = _result(Likeness(None))
        running, call = Running("model.conversion", wanted.name, result=unknown), in_loop()
        file = wanted.file.as_posix()

        def tell(what: str, done: int, total: int) -> None:
            if running.ended:
                raise Cancelled("the conversion was cancelled")
            written = {"reading": 0, "writing": done}.get(what)
            view = {"status": what, "file": file, "done": done, "total": total}
            call(running.publish, News(file, view, written))

        async def work() -> None:
            running.plan(
                {file: wanted.order.size},
                {"status": "planned", "files": [{"file": file, "total": wanted.order.size}]},
            )
            running.result = _result(await self._convert(wanted, tell, check=check))
            size = wanted.order.target.stat().st_size
            running.publish(News(file, {"status": "ready", "file": file, "total": size}))

        return self.start(running, work)

    async def _convert(self, wanted: Conversion, tell: OnProgress, *, check: bool) -> Likeness:
        service, settings = self._service, self._service.settings
        engine = partial(service.backend.engine, service.pool.device)
        likeness = Likeness(None, "as check says")
        with replacing(wanted.order.target) as file:
            await asyncio.to_thread(require_room, wanted.order, checked=settings.memory_check)
            await convert(engine(), wanted.order, tell)
            if check:
                result = await asyncio.to_thread(with_file, wanted.source, file)
                likeness = await compared(wanted.source, result, settings, engine, tell)
        entry = await asyncio.to_thread(wanted.made)
        await asyncio.to_thread(keep, service.settings.models_dir, [entry])
        service.catalog.learn([entry])
        service.pool.forget_failure(entry)
        return likeness


CONVERSIONS = web.AppKey("conversions", Conversions)
REFUSALS = (UnsupportedOperation, InvalidModelFile, ModelBusy, InsufficientMemory, DiskFull)


@endpoint(
    None,
    request=ConvertRequest,
    errors=(*READING, *MODEL, *ADMIN, *REFUSALS),
    also={202: answers.ConversionObject},
    media=(EVENTS,),
    events="Events `progress`, then `done` or `error`; comments as heartbeats.",
    example={"model": "sd15", "type": "q8_0", "stream": False},
)
@admins_only
async def convert_model(request: web.Request) -> web.StreamResponse:
    """POST /v1/models/convert: write a model in another type, or follow that, streamed or not."""
    asked = await asked_for(request, ConvertRequest)
    service = request.app[SERVICE]
    if "convert" not in service.abilities.tasks:
        raise UnsupportedOperation("the engine of this server cannot convert models")
    options = asked.model_dump(include={"rules", "name", "force"})
    wanted = await asyncio.to_thread(
        conversion, service.catalog, asked.model, asked.type, put_vae=asked.vae, **options
    )
    if service.catalog.knows(wanted.name):
        refuse_in_use(request.app, service.catalog.quants(wanted.name))
    await asyncio.to_thread(require_room, wanted.order, checked=service.settings.memory_check)
    running = request.app[CONVERSIONS].begin(wanted, check=asked.check)
    return await followed(request, running, answers.ConversionObject, stream=asked.stream)


@endpoint(answers.ConversionObject, errors=(ConversionNotFound,))
async def get_conversion(request: web.Request) -> web.Response:
    """GET /v1/models/convert/{id}: how far it is, or how it ended; the id is the result's name."""
    return reply(answers.ConversionObject, _named(request).view())


@endpoint(answers.ConversionObject, errors=(ConversionNotFound, *ADMIN))
@admins_only
async def cancel_conversion(request: web.Request) -> web.Response:
    """DELETE /v1/models/convert/{id}: end it; nothing is left of it."""
    running = _named(request)
    if not running.ended:
        await request.app[CONVERSIONS].cancel(running)
    return reply(answers.ConversionObject, running.view())


async def conversions_run(app: web.Application) -> AsyncIterator[None]:
    """What an earlier run of the server left half-written goes at the start."""
    await asyncio.to_thread(sweep, app[SERVICE].settings.models_dir / FOLDER)
    yield


async def end_conversions(app: web.Application) -> None:
    """Signal `on_shutdown`, as for pulls."""
    await app[CONVERSIONS].close()


def _result(likeness: Likeness) -> dict[str, Any]:
    return {"psnr": likeness.psnr and round(likeness.psnr, 2), "not_compared": likeness.words or None}


def _named(request: web.Request) -> Running:
    name = request.match_info["id"]
    found = request.app[CONVERSIONS].named(name)
    if not found:
        raise ConversionNotFound(
            f"there was no conversion to {name[:100]!r} since this server started", param="model"
        )
    return found[-1]
