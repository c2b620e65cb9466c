"""Sets of pictures: ask for one, look at it, follow it, cancel it or one of its pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Any, Final

from aiohttp import web

from gguf_imagegen.api import body
from gguf_imagegen.api.callers import caller_of, sender_of
from gguf_imagegen.api.idempotency import ATTEMPTS, Attempt
from gguf_imagegen.api.keys import SERVICE
from gguf_imagegen.api.openapi.contract import EVENTS, IDEMPOTENCY, PICTURE, Param, endpoint
from gguf_imagegen.api.paging import LIMIT, limit_of, page_of
from gguf_imagegen.api.reply import reply
from gguf_imagegen.api.set_answers import SetDryRun, SetItem, SetList, SetObject, SetSummary
from gguf_imagegen.api.streams.frames import DONE, HEARTBEAT, frame
from gguf_imagegen.api.streams.writing import Silence, send
from gguf_imagegen.api.urls import base_url, file_url
from gguf_imagegen.jobs.ids import draw_id
from gguf_imagegen.jobs.picture_set import PictureSet
from gguf_imagegen.jobs.results import ResultStore
from gguf_imagegen.jobs.ticket import Item
from gguf_imagegen.pictures import contact_sheet, provenance
from gguf_imagegen.pictures.contact_sheet import Cell
from gguf_imagegen.planning.combinations import Combinations, SetRequest, combinations
from gguf_imagegen.planning.plan import Operation, Plan
from gguf_imagegen.planning.prompt import require_prompt
from gguf_imagegen.planning.warnings import few
from gguf_imagegen.service import Service
from gguf_imagegen.vocabulary.errors import ImagegenError, InvalidImage, InvalidRequest, JobNotFound

COMPOSITE: Final = "compositeWithTrainedAlgorithmicMedia"
PAGE = 50
BEFORE = Param("before", "query", {"type": "string"}, "go on after the set of this id")
CATS = {"prompts": ["a lovely cat", "a lovely dog"], "size": "64x64", "matrix": {"steps": [1, 2]}}


@endpoint(
    SetObject,
    request=SetRequest,
    errors=PICTURE,
    dry_run=SetDryRun,
    status=202,
    params=(IDEMPOTENCY,),
    example=CATS,
)
async def make_set(request: web.Request) -> web.Response:
    """POST /v1/images/sets: 202; the pictures are made one after the other, whether anybody waits or not.

    Beside its own fields it has those of any image request, but for `prompt`.
    """
    service = request.app[SERVICE]
    fields = await body.read_body(request)
    found = await asyncio.to_thread(combinations, fields, service.abilities, service.settings)
    attempt = None if found.shared.dry_run else await request.app[ATTEMPTS].of(request, fields)
    del fields  # with the pictures in them
    if attempt is None:
        return await _made(request, found)
    async with attempt.lock:
        known = attempt.joinable_set
        if known is not None and known.id in service.sets.ids:
            body.let_go(request)
            return _accepted(request, known)
        return await _made(request, found, attempt)


async def _made(request: web.Request, found: Combinations, attempt: Attempt | None = None) -> web.Response:
    """A new set, or what it would cost."""
    service = request.app[SERVICE]
    operation: Operation = "edit" if found.shared.image else "generation"
    plans = await _plans(request, found, operation)
    warnings = few([*request.get(body.NOTES, []), *found.warnings, *_warnings(plans)])
    body.let_go(request)
    if found.shared.dry_run:
        return reply(SetDryRun, SetDryRun.of(await service.forecasts(plans), warnings))
    server, drawn = service.settings.server_name, zip(plans, found.own, strict=True)
    items = [_item(draw_id("job", server), plan, own["prompt"]) for plan, own in drawn]
    wanted = PictureSet(
        found.shared,
        operation,
        items,
        sender_of(request),
        warnings=warnings,
        id=draw_id("set", server),
        repeat=attempt.repeat if attempt else None,
    )
    await service.submit_set(wanted)
    if attempt is not None:
        attempt.job = wanted
    return _accepted(request, wanted)


def _accepted(request: web.Request, wanted: PictureSet) -> web.Response:
    address = f"{base_url(request)}/v1/images/sets/{wanted.id}"
    return reply(SetObject, _view(request, wanted), status=202, headers={"Location": address})


async def _plans(request: web.Request, found: Combinations, operation: Operation) -> list[Plan]:
    """Raises what there is to say against an item, with its number."""
    service, sender, plans = request.app[SERVICE], sender_of(request), []
    for index, wanted in enumerate(found.requests):
        try:
            require_prompt(wanted.prompt)
            plan = await service.plan(wanted, operation, [], sender)
        except ImagegenError as exc:
            if not isinstance(exc, InvalidImage):  # whose words are fixed, and are about all of them
                exc.message = f"item {index}: {exc.message}"
            raise
        plans.append(plan.without_pixels())
    return plans


def _warnings(plans: list[Plan]) -> list[str]:
    return list(dict.fromkeys(note for plan in plans for note in plan.warnings))


def _item(id: str, plan: Plan, prompt: str) -> Item:
    spec = plan.spec
    strength = spec.variation.strength if spec.variation else 0.0
    return Item(id, plan.name, prompt, spec.cfg_scale, spec.sampler, spec.steps, spec.seed, strength)


@endpoint(SetList, errors=(InvalidRequest, JobNotFound), params=(LIMIT, BEFORE))
async def list_sets(request: web.Request) -> web.Response:
    """GET /v1/images/sets: the newest first; `limit` of 50, at most 200, from after that of `before`."""
    limit, before = limit_of(request, PAGE), request.query.get("before")
    service, caller = request.app[SERVICE], caller_of(request)
    last = None if before is None else service.sets.get(before, caller)
    page, more = page_of(service.sets.seen_by(caller), limit, last)
    data = [SetSummary.of(each, len(service.pool.lanes)) for each in page]
    return reply(SetList, {"object": "list", "data": data, "has_more": more})


@endpoint(SetObject, errors=(JobNotFound,))
async def get_set(request: web.Request) -> web.Response:
    """GET /v1/images/sets/{id}: the set with all its items."""
    return reply(SetObject, _view(request, _set(request)))


@endpoint(SetObject, errors=(JobNotFound,))
async def cancel_set(request: web.Request) -> web.Response:
    """DELETE /v1/images/sets/{id}: cancel what has not ended; its pictures stay."""
    wanted = _set(request)
    await request.app[SERVICE].sets.cancel(wanted)
    return reply(SetObject, _view(request, wanted))


@endpoint(SetItem, errors=(JobNotFound, *PICTURE))
async def cancel_item(request: web.Request) -> web.Response:
    """DELETE /v1/images/sets/{id}/items/{index}: cancel one picture; the others go on."""
    wanted, given = _set(request), request.match_info["index"]
    if not given.isdecimal() or len(given) > 9:
        raise JobNotFound(f"{wanted.id} has no item {given[:60]!r}")
    await request.app[SERVICE].sets.cancel_item(wanted, int(given))
    return reply(SetItem, SetItem.of(wanted, int(given), partial(file_url, request)))


@endpoint(
    None,
    errors=(JobNotFound,),
    media=(EVENTS,),
    events="`set`, the whole set; `item`, an item that has changed; at the end `set` and `data: [DONE]`.",
)
async def set_events(request: web.Request) -> web.StreamResponse:
    """GET /v1/images/sets/{id}/events: the set as it is, and each change of an item; nothing to resume."""
    return await send(request, partial(_frames, request, _set(request)))


async def _frames(request: web.Request, wanted: PictureSet, silence: Silence) -> AsyncGenerator[bytes, None]:
    service = request.app[SERVICE]
    told = _view(request, wanted).model_dump()
    yield HEARTBEAT + _frame("set", told)
    items = dict(enumerate(told["items"]))
    while not (wanted.ended and not wanted.live) and not service.scheduler.draining:
        news = b"".join(_news(request, wanted, items))
        yield news
        if news:
            await asyncio.sleep(service.waits.together)
        else:
            await service.scheduler.news.wait(silence.left)
    yield b"".join(_news(request, wanted, items)) + _frame("set", _view(request, wanted).model_dump()) + DONE


def _news(request: web.Request, wanted: PictureSet, items: dict[int, dict[str, Any]]) -> list[bytes]:
    """The items that differ from what was told, which this becomes."""
    url, frames = partial(file_url, request), []
    for index in [index for index, item in items.items() if item["status"] in ("queued", "running")]:
        item = SetItem.of(wanted, index, url).model_dump()
        if item != items[index]:
            items[index] = item
            frames.append(_frame("item", item))
    return frames


def _frame(kind: str, data: Mapping[str, Any]) -> bytes:
    return frame({"type": kind, **data}, event=kind)


@endpoint(None, errors=(JobNotFound,), media=("image/png",))
async def sheet(request: web.Request) -> web.Response:
    """GET /v1/images/sets/{id}/sheet: the pictures made so far side by side, with what varies below each."""
    service, wanted = request.app[SERVICE], _set(request)
    made = await service.in_turn(partial(_sheet, service, wanted))
    return web.Response(body=made, content_type="image/png")


def _sheet(service: Service, wanted: PictureSet) -> bytes:
    read = partial(_picture, service.results)
    cells = [Cell(read(wanted, index), tuple(_label(wanted, index))) for index in range(len(wanted.items))]
    last = wanted.varies[-1:]
    columns = len({getattr(item, name) for item in wanted.items for name in last})
    marked = service.settings.provenance
    return contact_sheet.make(cells, columns, provenance.packet(COMPOSITE) if marked else b"")


def _picture(results: ResultStore, wanted: PictureSet, index: int) -> bytes | None:
    """None for one that is not made, or is gone."""
    job = wanted.jobs.get(index)
    if job is None or not job.images:
        return None
    name = job.images[0].name
    try:
        return results.thumbnail(name, contact_sheet.WIDTH) or results.get(name)
    except ImagegenError:
        return None


def _label(wanted: PictureSet, index: int) -> list[str]:
    """The prompt or the model alone, the numbers with their names."""
    item = wanted.items[index]
    words = [getattr(item, name) for name in ("prompt", "model") if name in wanted.varies]
    numbers = [name for name in wanted.varies if name not in ("prompt", "model")]
    settings = ", ".join(f"{name} {getattr(item, name)}" for name in numbers)
    return [f"{index}", *words, *([settings] if settings else [])]


def _set(request: web.Request) -> PictureSet:
    return request.app[SERVICE].sets.get(request.match_info["id"], caller_of(request))


def _view(request: web.Request, wanted: PictureSet) -> SetObject:
    return SetObject.whole(wanted, len(request.app[SERVICE].pool.lanes), partial(file_url, request))
