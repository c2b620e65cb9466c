"""What was accepted, as it is stored: a request complete with seed and model, its files by their hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gguf_imagegen.catalog.entry import Entry
from gguf_imagegen.jobs.job import Hook, Job
from gguf_imagegen.jobs.spool import Spool
from gguf_imagegen.planning.plan import Operation, Plan
from gguf_imagegen.planning.request import ImageRequest
from gguf_imagegen.vocabulary.abilities import Abilities
from gguf_imagegen.vocabulary.callers import Caller, Sender
from gguf_imagegen.vocabulary.errors import InvalidRequest

LEFT_OUT = {"sources", "description", "examples"}
"""Of a model's entry: what no picture depends on."""


class Repeat(Struct, frozen=True):
    """How a repeated request is known: a digest of its key and caller, and one of its body."""

    key: str
    body: str


class Item(Struct, frozen=True):
    """One picture of a set: the id of its job, which is drawn with the set, and what is its own."""

    job: str
    model: str
    prompt: str
    cfg_scale: float
    sampler: str
    steps: int
    seed: int
    variation_strength: float = 0.0


OWN = tuple(name for name in Item.__struct_fields__ if name != "job")
"""The fields of a request that an item has of its own."""


class Ticket(Struct, frozen=True):
    """One job to do, or with `items` a set of them, which has no plan; no pixels and no paths.

    `plan` is what the request came to when it was taken, with all that changes pixels: what is done is that,
    whatever defaults are by then.
    """

    id: str
    caller: str
    dialect: str
    operation: Operation
    model: str
    request: dict[str, Any]
    files: dict[str, list[str]]
    """SHA-256 of the request's pictures by field."""
    plan: dict[str, Any]
    names: list[str]
    """Of the pictures to make."""
    lasting: bool
    repeat: Repeat | None
    created: float
    priority: int = 0
    hook: Hook | None = None
    items: list[Item] = []
    parent: str | None = None
    """The set that this is an item of."""

    @property
    def hashes(self) -> list[str]:
        return [each for hashes in self.files.values() for each in hashes]

    @property
    def sender(self) -> Sender:
        return Sender(Caller(self.caller), self.dialect, self.caller)


def ticket_of(job: Job, request: ImageRequest, spool: Spool, repeat: Repeat | None) -> Ticket:
    """The ticket of a job that was made from a request; its pictures are in the spool then. Writes files."""
    plan = job.plan.without_pixels()
    drawn: dict[str, Any] = {"seed": None}
    if spec := plan.generate:
        drawn = {"seed": spec.seed, "variation_seed": spec.variation and spec.variation.seed}
    return Ticket(
        id=job.id,
        caller=job.caller,
        dialect=job.sender.dialect,
        operation=plan.operation,
        model=plan.entry.name,
        request=fields_of(request.model_copy(update={**drawn, "webhook": None})),
        files=spooled(request, spool),
        plan=msgspec.to_builtins(plan, enc_hook=_plain),
        names=list(job.names),
        lasting=job.lasting,
        repeat=repeat,
        created=job.created,
        priority=job.priority,
        hook=job.hook,
        parent=job.parent,
    )


def spooled(request: ImageRequest, spool: Spool) -> dict[str, list[str]]:
    """The hashes of the request's pictures by field, which are in the spool then. Writes files."""
    files = {
        "image": list(request.image),
        "mask": [request.mask] if request.mask else [],
        "control": [request.control] if request.control else [],
    }
    return {name: [spool.put(data) for data in pictures] for name, pictures in files.items()}


def request_of(ticket: Ticket, spool: Spool, able: Abilities) -> ImageRequest:
    """The request with its pictures. Raises OSError if one is lost, ValueError if it means nothing now."""
    pictures = {name: [spool.get(each) for each in hashes] for name, hashes in ticket.files.items()}
    single = {name: found[0] for name, found in pictures.items() if found and name != "image"}
    fields = {**ticket.request, "image": pictures.get("image", []), **single}
    return ImageRequest.model_validate(fields, context=able)


def plan_of(ticket: Ticket, find: Callable[[str], Entry | None]) -> Plan:
    """The plan as it was made, without pixels; of files it has the bare names.

    `find` gives the model of a name as it is now; one that is gone is as it was. Raises ValueError if the
    plan means nothing to this version of the program.
    """

    def typed(kind: type, value: Any) -> object:
        if kind is Entry:
            entry = Entry.model_validate(_as_now(value))
            now = find(entry.name)
            return _as_asked(now, entry) if now else entry
        if kind is Path:
            return Path(value)
        raise TypeError(kind)

    return msgspec.convert(ticket.plan, Plan, dec_hook=typed)


def _as_now(entry: dict[str, Any]) -> dict[str, Any]:
    """A model's entry in today's words: seamless edges were `tiling` once."""
    if "tiling" not in entry:
        return entry
    rest = {name: value for name, value in entry.items() if name != "tiling"}
    return {**rest, "seamless": "xy"} if entry["tiling"] else rest


def pinned(plan: Plan, fresh: Plan) -> Plan:
    """The plan as it was made, with the model and the paths of one made from the same request now."""
    generate, now = plan.generate, fresh.generate
    if generate is not None and now is not None:
        hires = generate.hires and now.hires and replace(generate.hires, model=now.hires.model)
        generate = replace(generate, loras=now.loras, embeddings=now.embeddings, hires=hires)
    upscale = plan.upscale and fresh.upscale and dataclasses.replace(plan.upscale, path=fresh.upscale.path)
    entry = _as_asked(fresh.entry, plan.entry)
    return dataclasses.replace(
        plan, entry=entry, generate=generate, upscale=upscale, enlarger=plan.enlarger and fresh.enlarger
    )


def _as_asked(now: Entry, then: Entry) -> Entry:
    """The model as it is now, with what a request chooses."""
    engine = now.engine.model_copy(update={"prediction": then.engine.prediction})
    return now.model_copy(update={"decoder": then.decoder, "seamless": then.seamless, "engine": engine})


def fields_of(request: ImageRequest) -> dict[str, Any]:
    """The request as JSON, without its pictures."""
    fields = request.without_files().model_dump(mode="json", exclude_defaults=True)
    try:
        msgspec.json.encode(fields)
    except UnicodeEncodeError:  # half of a surrogate pair, where the field is not checked for it
        raise InvalidRequest("the request contains text that is not valid Unicode") from None
    return {**fields, "size": "{}x{}".format(*request.size)} if request.size else fields


def _plain(value: object) -> object:
    if isinstance(value, Entry):
        files = {role: Path(path.name) for role, path in value.files.items()}
        bare = value.model_copy(update={"files": files})
        return bare.model_dump(mode="json", exclude_defaults=True, exclude=LEFT_OUT)
    if isinstance(value, Path):
        return value.name
    raise TypeError(type(value))
